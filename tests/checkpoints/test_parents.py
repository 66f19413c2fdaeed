"""Which models fit each other, and what is done so that they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made import EMBED, HEAD, NORM, directory, tokenizer
from torch import Tensor

from untaxed.checkpoints import Source, check_tokenizer, fit, open_source, wider
from untaxed.errors import CheckpointError

WORDS = ["a", "b", "c", "d"]
LAYER = "model.layers.0.mlp.up_proj.weight"


def model(path: Path, rows: int = 4, *, seed: int = 0, untied: bool = True, **config: object) -> Source:
    """A model of `rows` tokens, with a tokenizer of the first four unless written otherwise."""
    torch.manual_seed(seed)
    tensors = {EMBED: torch.randn(rows, 2), LAYER: torch.randn(3, 2), NORM: torch.ones(2)}
    if untied:
        tensors[HEAD] = torch.randn(rows, 2)
    directory(path, tensors, tie_word_embeddings=not untied, vocab_size=rows, **config)
    tokenizer(path, WORDS)
    return open_source(path)


def whole(source: Source) -> dict[str, Tensor]:
    return {name: source.block(name).view(kind.shape) for name, kind in source.kinds.items()}


def test_models_that_are_alike_are_left_as_they_are(tmp_path: Path) -> None:
    parents = [model(tmp_path / str(number), seed=number) for number in range(3)]
    found = fit(parents)
    assert found.notes == []
    assert found.kinds == parents[0].kinds
    assert found.config == parents[0].config
    for fitted, parent in zip(found.parents, parents, strict=True):
        assert all(tensor.equal(whole(parent)[name]) for name, tensor in whole(fitted).items())
        assert fitted.stored(NORM, 1).equal(parent.stored(NORM, 1))


@pytest.mark.parametrize("leader", [0, 1])
def test_a_head_that_one_parent_ties_is_written_apart(tmp_path: Path, leader: int) -> None:
    parents = [model(tmp_path / "tied", untied=False), model(tmp_path / "untied", seed=1)]
    found = fit(parents, leader=leader)
    assert set(found.kinds) == {EMBED, LAYER, NORM, HEAD}
    assert found.config["tie_word_embeddings"] is False
    tied, untied = map(whole, found.parents)
    assert tied[HEAD].equal(tied[EMBED])
    assert untied[HEAD].equal(whole(parents[1])[HEAD])


def test_weights_that_all_tie_stay_tied(tmp_path: Path) -> None:
    found = fit([model(tmp_path / name, untied=False) for name in "ab"])
    assert HEAD not in found.kinds
    assert found.config["tie_word_embeddings"] is True


def test_rows_of_no_token_are_left_out(tmp_path: Path) -> None:
    padded = model(tmp_path / "padded", rows=8, seed=1)
    found = fit([model(tmp_path / "plain"), padded])
    assert found.kinds[EMBED].shape == (4, 2)
    assert found.config["vocab_size"] == 4
    assert whole(found.parents[1])[EMBED].equal(whole(padded)[EMBED][:4])
    assert found.notes == [
        f"rows 4 to 7 of the vocabulary of {tmp_path / 'padded'} belong to no token and are left out"
    ]


def test_rows_that_a_parent_lacks_are_the_leaders(tmp_path: Path) -> None:
    plain, chat = model(tmp_path / "plain", seed=1), model(tmp_path / "chat", rows=6)
    tokenizer(tmp_path / "chat", WORDS, ["<user>", "<end>"])
    found = fit([chat, plain])
    assert found.kinds[HEAD].shape == (6, 2)
    filled = whole(found.parents[1])
    for name in (EMBED, HEAD):
        assert filled[name][:4].equal(whole(plain)[name])
        assert filled[name][4:].equal(whole(chat)[name][4:])
        for start, stop in ((0, 3), (5, 11), (7, 9), (9, 12), (12, 12), (0, 12)):
            assert found.parents[1].block(name, start, stop).equal(filled[name].view(-1)[start:stop])
            assert found.parents[1].stored(name, start, stop).equal(filled[name].view(-1)[start:stop])
    assert "rows 4 to 5 of the vocabulary ('<user>', '<end>') are only in" in found.notes[0]


def test_rows_of_tokens_are_never_lost(tmp_path: Path) -> None:
    plain, chat = model(tmp_path / "plain"), model(tmp_path / "chat", rows=6)
    tokenizer(tmp_path / "chat", WORDS, ["<user>", "<end>"])
    with pytest.raises(CheckpointError, match=r"rows 4 to 5 belong to tokens that would be lost \('<user>', '<end>'\)"):
        fit([plain, chat])
    with pytest.raises(CheckpointError, match=r"take the tokenizer and configuration of .*chat, or give all models"):
        fit([plain, chat])


def test_other_vocabularies_are_refused_with_the_first_row_that_differs(tmp_path: Path) -> None:
    parents = [model(tmp_path / name) for name in "xy"]
    tokenizer(tmp_path / "y", ["a", "B", "C", "d"])
    with pytest.raises(CheckpointError, match=r"\(2 tokens; row 1 is 'B' in the one and 'b' in the other\)"):
        fit(parents)


def test_added_tokens_of_other_names_are_said(tmp_path: Path) -> None:
    parents = [model(tmp_path / name, rows=5) for name in "xyz"]
    tokenizer(tmp_path / "x", WORDS, ["<reserved>"])
    tokenizer(tmp_path / "y", WORDS, ["<end>"])
    notes = fit(parents).notes
    assert "names 1 added tokens otherwise" in notes[0]
    assert "'<end>'" in notes[0]
    (lacking,) = fit(parents[::-1][:2]).notes
    assert "has 1 tokens that the tokenizer of" in lacking


def test_without_tokenizers_nobody_knows_what_a_row_is(tmp_path: Path) -> None:
    parents = [model(tmp_path / "x"), model(tmp_path / "y", rows=5)]
    (tmp_path / "y" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"5 rows and that of .* 4 \(rows 4 to 4 are in one alone\): without a"):
        fit(parents)
    same = [parents[0], model(tmp_path / "z")]
    (tmp_path / "z" / "tokenizer.json").unlink()
    assert fit(same).notes == []


def test_a_unigram_vocabulary_and_the_files_of_gpt2_are_read(tmp_path: Path) -> None:
    parents = [model(tmp_path / name) for name in "xyz"]
    (tmp_path / "x" / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0], ["b", -1], ["c", -2], ["D", -3]]}}')
    (tmp_path / "y" / "tokenizer.json").unlink()
    (tmp_path / "y" / "vocab.json").write_text('{"a": 0, "b": 1, "c": 2, "d": 3}')
    for one in (1, 2):
        with pytest.raises(CheckpointError, match=r"\(1 tokens; row 3 is 'd' in the one and 'D' in the other\)"):
            fit([parents[0], parents[one]])
    assert fit(parents[1:]).notes == []
    (tmp_path / "z" / "tokenizer.json").write_text('{"model": {"vocab": {}}, "added_tokens": [{"id": 3}]}')
    with pytest.raises(CheckpointError, match="added_tokens is not a list of tokens"):
        fit(parents[1:])


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "mistral"}, "is a mistral model and .* a llama model: only models of one architecture"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4 in the one and 2 in the other"),
        ({"quantization_config": {"bits": 4}}, "y is quantised: its tensors are codes, not weights"),
        ({"text_config": {"num_attention_heads": 4}}, "num_attention_heads is 4 in the one and 2 in the other"),
    ],
)
def test_configurations_that_give_tensors_another_meaning_are_refused(
    tmp_path: Path, config: dict[str, object], match: str
) -> None:
    parents = [
        model(tmp_path / "x", num_attention_heads=2),
        model(tmp_path / "y", **{"num_attention_heads": 2, **config}),
    ]
    with pytest.raises(CheckpointError, match=match):
        fit(parents)
    if "quantization_config" in config:
        with pytest.raises(CheckpointError, match=match):
            fit(parents[1:])


def test_other_differences_of_configuration_are_notes(tmp_path: Path) -> None:
    parents = [model(tmp_path / "x", rope_theta=1e4, bos_token_id=1), model(tmp_path / "y", rope_theta=5e5)]
    (note,) = fit(parents).notes
    assert note.startswith("rope_theta is 500000.0 in ")
    assert fit(parents).config["rope_theta"] == 1e4


@pytest.mark.parametrize("leader", [0, 1])
def test_tensors_that_only_one_has_are_named(tmp_path: Path, leader: int) -> None:
    directory(tmp_path / "x", {NORM: torch.ones(2), LAYER: torch.ones(2), "model.bias": torch.ones(1)})
    directory(tmp_path / "y", {NORM: torch.ones(2)})
    parents = [open_source(tmp_path / name) for name in "xy"]
    with pytest.raises(CheckpointError, match=r"y lacks 'model\..*', which .*x has \(2 such tensors\)"):
        fit(parents, leader=leader)
    assert fit(parents, leader=leader, layers=False).parents[0].kinds.keys() == parents[0].kinds.keys()


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    directory(tmp_path / "x", {NORM: torch.ones(2, 3)})
    directory(tmp_path / "y", {NORM: torch.ones(3, 2)})
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' has shape \(2, 3\) in .*x and \(3, 2\) in .*y"):
        fit([open_source(tmp_path / name) for name in "xy"])


def test_masks_that_older_libraries_stored_are_the_leaders(tmp_path: Path) -> None:
    old, older, mask = directory, directory, "h.0.attn.bias"
    old(tmp_path / "x", {NORM: torch.ones(2), mask: torch.ones(1, 1, 4, 4, dtype=torch.bool)})
    older(tmp_path / "y", {NORM: torch.ones(2), mask: torch.zeros(1, 1, 2, 2, dtype=torch.uint8)})
    directory(tmp_path / "z", {NORM: torch.ones(2)})
    parents = [open_source(tmp_path / name) for name in "xyz"]
    found = fit(parents)
    assert all(parent.stored(mask).equal(torch.ones(16, dtype=torch.bool)) for parent in found.parents)
    assert list(fit(parents[::-1]).kinds) == [NORM]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float64", "float16", "float64"),
        ("float8_e4m3fn", "bfloat16", "bfloat16"),
        ("float8_e4m3fn", "float8_e5m2", "bfloat16"),
    ],
)
def test_dtypes_that_differ_are_written_in_one_that_holds_both(
    tmp_path: Path, first: str, second: str, expected: str
) -> None:
    one, two = getattr(torch, first), getattr(torch, second)
    assert wider(one, two) == wider(two, one) == getattr(torch, expected)
    directory(tmp_path / "x", {NORM: torch.ones(2).to(one)})
    directory(tmp_path / "y", {NORM: torch.ones(2).to(two)})
    found = fit([open_source(tmp_path / name) for name in "xy"])
    assert found.kinds[NORM].dtype == getattr(torch, expected)
    assert [kind.kinds[NORM].dtype for kind in found.parents] == [one, two]
    assert len(found.notes) == (first != second)


def test_integers_meet_only_integers_of_one_kind(tmp_path: Path) -> None:
    directory(tmp_path / "x", {NORM: torch.ones(2)})
    directory(tmp_path / "y", {NORM: torch.ones(2, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=r"stored as torch\.float32 in .*x and as torch\.int64 in .*y"):
        fit([open_source(tmp_path / name) for name in "xy"])


def test_a_model_that_says_it_is_not_quantised_is_merged(tmp_path: Path) -> None:
    assert fit([model(tmp_path / "x", quantization_config=None), model(tmp_path / "y")]).notes == []


def test_the_tokenizer_that_is_taken_fits_the_rows(tmp_path: Path) -> None:
    lead, other = model(tmp_path / "lead", rows=6), model(tmp_path / "other", rows=9)
    assert check_tokenizer(other, lead, merged=False) == []
    tokenizer(tmp_path / "lead", WORDS, ["<reserved>"])
    tokenizer(tmp_path / "other", WORDS, ["<user>", "<end>"])
    assert check_tokenizer(other, lead, merged=True) == []  # the rows of what both call differently are merged
    with pytest.raises(CheckpointError, match=r"1 tokens have other names \(row 4 is '<user>' there and '<reserved>'"):
        check_tokenizer(other, lead, merged=False)
    tokenizer(tmp_path / "other", ["a", "B", "C", "d"])
    for merged in (True, False):
        with pytest.raises(CheckpointError, match=r"2 tokens have other names \(row 1 is 'B' there and 'b' here\)"):
            check_tokenizer(other, lead, merged=merged)
    tokenizer(tmp_path / "other", WORDS, ["e", "f", "<user>", "<end>"])
    with pytest.raises(CheckpointError, match=r"there are 6, and its tokens need rows 6 to 7 \('<user>', '<end>'\)"):
        check_tokenizer(other, lead, merged=True)
    (tmp_path / "other" / "tokenizer.json").unlink()
    (note,) = check_tokenizer(other, lead, merged=False)
    assert "cannot be compared" in note
