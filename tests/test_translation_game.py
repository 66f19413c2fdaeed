"""The translation game runs on toy sentences: what it trains, what it leaves alone, and what it writes."""

from __future__ import annotations

import gzip
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

STUDIES = Path(__file__).parent.parent / "studies"
pytest.importorskip("sacrebleu", reason="the translation game needs the extra 'eval'")
pytest.importorskip("tokenizers", reason="the translation game needs the extra 'train'")

WHO = {"the dog": ("le chien", "der hund"), "the cat": ("le chat", "die katze"), "a child": ("un enfant", "ein kind")}
DOES = {
    "sleeps": ("dort", "schläft"),
    "eats": ("mange", "isst"),
    "sings": ("chante", "singt"),
    "runs": ("court", "rennt"),
}
WHEN = {"here": ("ici", "hier"), "now": ("maintenant", "jetzt"), "today": ("aujourd'hui", "heute")}


@pytest.fixture(scope="module")
def game() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        return importlib.import_module("translation_game")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third sentence lacks French, every third one German; the others are the game's or held out."""
    directory = tmp_path_factory.mktemp("data")
    rows: dict[str, list[dict[str, str]]] = {"fr": [], "de": []}
    sentences = [tuple(zip(who, does, when)) for who in pairs(WHO) for does in pairs(DOES) for when in pairs(WHEN)]
    for number, (english, french, german) in enumerate(sentences):
        split = {4: "valid", 7: "test"}.get(number % 9, "train")
        for code, words, missing in (("fr", french, 0), ("de", german, 2)):
            if number % 3 != missing:
                rows[code].append(
                    {"split": split, "en": " ".join(english).capitalize() + ".", code: " ".join(words) + "."}
                )
    (directory / "tatoeba_en_de").mkdir()
    for code, place in (("fr", directory), ("de", directory / "tatoeba_en_de")):
        lines = "\n".join(json.dumps(row) for row in rows[code])
        (place / f"tatoeba_en_{code}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return directory


def pairs(words: dict[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(english, *others) for english, others in words.items()]


@pytest.fixture(scope="module")
def settings(game: Any) -> Any:
    return game.Settings(
        vocabulary=80, size=16, sender_pretraining_steps=30, receiver_pretraining_steps=20, pretraining_batch=8,
        steps=6, batch=2, samples=2, reset_every=4, evaluate_every=3, sender_rate=0.02,
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(game: Any, data: Path) -> Any:
    return game.read_corpus(data, 12)


@pytest.fixture(scope="module")
def world(game: Any, corpus: Any, settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return game.build_world(corpus, settings, tmp_path_factory.mktemp("out") / "pretrained.pt")


def test_the_game_and_pretraining_share_no_english(corpus: Any) -> None:
    """Of 36 sentences 12 have both languages, 4 of these valid and 4 test; 2 of the other 4 are the game's."""
    assert len(corpus.to_english) == len(corpus.to_german) == 14
    assert corpus.game == [
        ("le chien dort maintenant.", "der hund schläft jetzt."),
        ("le chat chante maintenant.", "die katze singt jetzt."),
    ]
    assert not {"the dog sleeps now.", "the cat sings now."} & {e for _, e in corpus.to_english}
    assert not {"the dog sleeps now.", "the cat sings now."} & {e for e, _ in corpus.to_german}
    assert [len(corpus.heldout[split].french) for split in ("valid", "test")] == [4, 4]
    assert corpus.heldout["valid"].english[0] == ["the dog eats now."]


def test_text_survives_spelling(world: Any, corpus: Any) -> None:
    english = [e for _, e in corpus.to_english]
    ids = world.spellers["en"].encode(english)
    assert ids.shape == (14, 14)
    assert world.spellers["en"].decode(ids) == english


def test_samples_follow_the_distribution(game: Any) -> None:
    import translation_world

    drawn = translation_world._draw(
        torch.tensor([[0.0, 0.25, 0.0, 0.75]]).expand(4000, 4), torch.Generator().manual_seed(0)
    )
    shares = drawn.flatten().bincount(minlength=4) / 4000
    assert shares[[0, 2]].tolist() == [0, 0]
    assert shares[3].item() == pytest.approx(0.75, abs=0.03)


def test_a_message_ends_once_and_padding_does_not_matter(game: Any, world: Any) -> None:
    """Teacher forcing over padded rows gives what a row alone gives."""
    message = world.sender.generate(world.french, 14, torch.Generator().manual_seed(0))
    ended = (message == 2).cumsum(1)
    assert ((message == 0) == (ended - (message == 2).long() > 0)).all()
    together, alone = world.sender(world.french, message), world.sender(game.trim(world.french[1:2]), message[1:2])
    length = int((message[1] != 0).sum())
    assert torch.allclose(together[1, :length], alone[0, :length], atol=1e-5)


def test_both_models_learn_and_the_pretrained_ones_stay(game: Any, world: Any, settings: Any) -> None:
    before = {name: value.clone() for name, value in world.sender.state_dict().items()}
    points = game.play(world, settings, seed=0)
    assert [point["step"] for point in points] == [0, 3, 6]
    assert points == game.play(world, settings, seed=0)
    assert points != game.play(world, settings, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in world.sender.state_dict().items())


def test_a_reset_with_decay_1_brings_back_the_pretrained_english(game: Any, world: Any, settings: Any) -> None:
    points = game.play(world, replace(settings, steps=10, sender_rate=0.1), decay=1.0, seed=0)
    assert [(p["step"], p["phase"], p["steps_since_reset"]) for p in points if p["phase"]] == [
        (4, "before", 3),
        (4, "after", 0),
        (8, "before", 3),
        (8, "after", 0),
    ]
    initial = points[0]["test"]["bleu_en"]
    assert [p["test"]["bleu_en"] for p in points if p["phase"] == "after"] == [initial, initial]
    assert any(p["test"]["bleu_en"] != initial for p in points if p["phase"] == "before")


def test_a_kl_penalty_and_the_reward_pull_on_the_sender_alone(game: Any, world: Any, settings: Any) -> None:
    """At the pretrained weights KL and its gradient are 0; away from them the penalty adds to the sender's loss."""
    rows = torch.arange(2)

    def losses(sender: Any, kl: float) -> tuple[Any, Any, float]:
        return game.losses(world, sender, world.receiver, rows, settings, kl, torch.Generator().manual_seed(0))

    assert losses(world.sender, 5.0)[0].item() == pytest.approx(losses(world.sender, 0.0)[0].item(), abs=1e-5)
    moved = game.copy.deepcopy(world.sender)
    with torch.no_grad():
        moved.output.bias[3:10] += 1.0
    assert losses(moved, 5.0)[0] > losses(moved, 0.0)[0]
    assert losses(moved, 5.0)[1:] == losses(moved, 0.0)[1:]


def test_finished_runs_are_read_and_not_made_again(
    game: Any, world: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, steps=2, evaluate_every=2)
    runs = game.make_runs(world, settings, tmp_path, range(2), "digest")
    assert {arm: len(made) for arm, made in runs.items()} == dict.fromkeys(game.ARMS, 2)
    monkeypatch.setattr(game, "play", lambda *args, **kwargs: pytest.fail("played again"))
    assert game.make_runs(world, settings, tmp_path, range(2), "digest") == runs
    with pytest.raises(game.Problem, match="another --out"):
        game.make_runs(world, replace(settings, steps=7), tmp_path, range(2), "digest")
    lines = [line for line in game.tables(game.summarize(runs)).splitlines() if line]
    assert len(lines) == 3 * (2 + len(game.ARMS)) + 1
    assert {line.count("|") for line in lines[: 3 + len(game.ARMS)]} == {5}
    assert {line.count("|") for line in lines[3 + len(game.ARMS) :]} == {6}


def test_a_share_is_read_where_english_is_best_on_validation(game: Any) -> None:
    """Plain goes from 10 to 20; at 0.5 (15) the second point serves, and reset, with better English, its third."""

    def run(*valid: tuple[float, float]) -> dict[str, Any]:
        points = []
        for step, (english, german) in enumerate(valid):
            test = {"bleu_en": english - 1, "bleu_de": german, "nll_de": 2.0}
            points.append({"step": step, "valid": {**test, "bleu_en": english}, "test": test})
        return {"knobs": {}, "points": points}

    runs = {"plain": [run((40, 10), (30, 16), (20, 20))] * 3, "other": [run((40, 10), (25, 15), (35, 17))] * 3}
    plain, other = (game.summarize(runs)["arms"][arm]["matched"] for arm in ("plain", "other"))
    assert (plain["bleu_de"][0]["step"], plain["bleu_de"][0]["bleu_en"]["mean"]) == (1, 29)
    assert (other["bleu_de"][0]["step"], other["bleu_de"][0]["beyond_plain"]["mean"]) == (2, 5)
    assert other["bleu_de"][2]["why"] == "never got there"
    assert plain["nll_de"][0]["why"] == "plain's gain is not clear of 0"


def test_the_cache_is_taken_up_and_that_of_other_settings_refused(
    game: Any, corpus: Any, world: Any, settings: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "pretrained.pt"
    made = game.build_world(corpus, settings, cache)
    taken = game.build_world(corpus, settings, cache)
    for one in (taken, world):
        assert all(
            torch.equal(value, one.sender.state_dict()[name]) for name, value in made.sender.state_dict().items()
        )
        assert torch.equal(made.german, one.german)
    with pytest.raises(game.Problem, match="other data or settings"):
        game.build_world(corpus, replace(settings, size=8), cache)


def test_wrong_data_is_one_line(game: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert game.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no tatoeba_en_fr.jsonl.gz in {tmp_path} or its folder tatoeba_en_fr; ")
    assert error.count("\n") == 1
    (tmp_path / "tatoeba_en_fr.jsonl.gz").write_bytes(b"no gzip")
    assert game.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is no gzipped JSON lines with split, en and fr" in capsys.readouterr().err
    assert game.main(["--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "0"]) == 2
    assert not (tmp_path / "out").exists()
