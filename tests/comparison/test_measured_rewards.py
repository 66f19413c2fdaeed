"""`untaxed measure` with every kind of reward: what is shown, what is kept, and what has no number."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, longer, serving
from tiny import build_classifier_dir
from typer.testing import CliRunner

from untaxed import measuring
from untaxed.cli import app
from untaxed.comparison import compare, measure
from untaxed.comparison.suite_file import load_suite
from untaxed.errors import SpecError, Undefined
from untaxed.measuring import contest_spec
from untaxed.reporting import measured, measured_csv, measured_page
from untaxed.studies.places import located

SUITE = """
prompts: {path: prompts.jsonl}
reward:
  proxy: {reward_model: judge, batch_size: 8}
  others: {brief: {rules: [{max_words: 4}, {regex: "w1", weight: 2}]}}
win_rates:
  by_proxy: {reward: {reward_model: judge}}
  even: {reward: "tiny:reward"}
preferences: {pairs: {rows: {path: pairs.jsonl}, limit: 20}}
length_controlled: true
drift: [length]
max_new_tokens: 6
"""
REWARDS = [
    "proxy", "proxy_at_equal_length", "brief", "brief_at_equal_length", "by_proxy", "by_proxy_at_equal_length",
    "even", "even_at_equal_length", "pairs_accuracy", "pairs_margin", "pairs_chosen", "pairs_rejected",
]  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    build_classifier_dir(folder / "judge")
    prompts = [f"w{n % 27} w{(5 * n + 1) % 27}" for n in range(60)]
    pairs = [{"prompt": p, "chosen": f"w{n % 13}", "rejected": f"w{n % 7 + 13} w2"} for n, p in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "suite.yaml").write_text(SUITE)
    return folder / "suite.yaml"


@pytest.fixture(scope="module")
def found(models: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out") / "measured"
    return dict(measure([models / "far"], models / "initial", suite, out).summary), out


def test_every_reward_has_its_number_and_interval(found: Any) -> None:
    summary, _ = found
    rewards = summary["models"][0]["reward"]
    assert list(rewards) == REWARDS
    for name, one in rewards.items():
        assert one["value"]["low"] <= one["value"]["mean"] <= one["value"]["high"], name
    assert {name for name, one in rewards.items() if "change" in one} == {"proxy", "brief"}
    won = rewards["by_proxy"]
    assert won["value"]["mean"] == pytest.approx((won["won"] + won["tied"] / 2) / won["items"])
    assert won["lost"] + won["won"] + won["tied"] + won["undefined"] == won["items"] > 0


def test_they_are_shown_everywhere(found: Any) -> None:
    summary, _ = found
    won = summary["models"][0]["reward"]["by_proxy"]
    told = f"{won['lost']} lost, {won['won']} won, {won['tied']} tied of {won['items']}"
    assert told in measured.markdown(summary)
    page = measured_page.html(summary)
    assert told in page
    assert all(name in page for name in REWARDS)
    table = list(csv.DictReader(io.StringIO(measured_csv.as_csv(summary))))
    assert {row["measure"] for row in table if row["group"] == "reward"} == set(REWARDS)
    row = next(row for row in table if row["measure"] == "by_proxy")
    kinds = ("lost", "won", "tied", "undefined", "items")
    assert [int(row[kind]) for kind in kinds] == [won[kind] for kind in kinds]


def test_nothing_is_measured_twice_until_a_judge_changes(
    found: Any, models: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, out = found
    asked: list[str] = []
    inner = measuring.measure
    monkeypatch.setattr(
        measuring, "measure", lambda subject, split, names: asked.extend(names) or inner(subject, split, names)
    )
    again = measure([models / "far"], models / "initial", suite, out).summary
    assert asked == []
    assert again["models"][0]["reward"] == summary["models"][0]["reward"]
    loaded = load_suite(suite)
    moved = suite.parent.parent / "moved"
    if not moved.exists():
        suite.parent.rename(moved)
    try:
        assert load_suite(moved / "suite.yaml").contents == loaded.contents
        build_classifier_dir(moved / "judge", seed=5)
        changed = load_suite(moved / "suite.yaml").contents
    finally:
        build_classifier_dir(moved / "judge")
        moved.rename(suite.parent)
    differ = {key for key in changed if changed[key] != loaded.contents[key]}
    assert differ == {f"reward.{name}" for name in REWARDS if "proxy" in name}


def test_a_judge_that_does_not_answer_leaves_a_reason_and_the_rest(
    models: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(prompts: Any, ours: Any, theirs: Any) -> list[str]:
        return ["HTTP 503 (6 tries)"] * len(prompts)

    monkeypatch.setattr(contest_spec, "reward_judge", lambda _: silent)
    said: list[str] = []
    summary = measure([models / "far"], models / "initial", suite, tmp_path, say=said.append).summary
    rewards = summary["models"][0]["reward"]
    assert rewards["by_proxy"]["value"]["mean"] is None
    assert "items could not be judged:" in rewards["by_proxy"]["value"]["why"]
    assert "× HTTP 503 (6 tries)" in rewards["by_proxy_at_equal_length"]["value"]["why"]
    assert rewards["proxy"]["value"]["mean"] is not None
    assert any("far: by_proxy: " in line and "HTTP 503" in line for line in said)
    assert "could not be judged" in measured.markdown(summary)
    monkeypatch.undo()
    again = measure([models / "far"], models / "initial", suite, tmp_path).summary
    assert again["models"][0]["reward"]["by_proxy"]["value"]["mean"] is not None


def test_an_endpoint_is_asked_after_saying_so_and_never_twice(
    models: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNTAXED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    file, said = suite.parent / "judged.yaml", []
    with serving(longer) as server:
        file.write_text(
            "prompts: {path: prompts.jsonl}\ndrift: []\nlength_controlled: true\nmax_new_tokens: 6\n"
            f"win_rates: {{judged: {{judge: {{endpoint: '{server.url}', model: m, key_env: JUDGE_KEY, "
            "price: {input: 1, output: 2}}}}\n"
        )
        summary = measure([models / "far"], models / "initial", file, tmp_path / "out", say=said.append).summary
        asked = len(server.asked)
        measure([models / "far"], models / "initial", file, tmp_path / "elsewhere")
        assert len(server.asked) == asked > 0
    won = summary["models"][0]["reward"]["judged"]
    assert asked == 2 * (won["items"] - sum(_equal_texts(models, suite)))
    most = next(at for at, line in enumerate(said) if "judged: at most" in line)
    exact = next(
        at for at, line in enumerate(said) if line.startswith("judged: ") and "answers are known already" in line
    )
    assert most < next(at for at, line in enumerate(said) if line == "far: judged") < exact
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in " ".join(said)


def _equal_texts(models: Path, suite: Path) -> list[bool]:
    """Of every prompt of both splits, whether both models write the same after it."""
    from untaxed.checkpoints import load_model, load_tokenizer
    from untaxed.measuring import Sampling
    from untaxed.measuring.sampling import sample

    prompts = load_suite(suite).suite.prompts
    found = []
    for split in prompts.values():
        far, start = (
            sample(load_model(models / name), load_tokenizer(models / name), split, Sampling(6)).texts
            for name in ("far", "initial")
        )
        found += [a == b for a, b in zip(far, start)]
    return found


def test_another_tokenizer_is_compared_by_its_texts(models: Path, suite: Path, tmp_path: Path) -> None:
    [entry] = measure([models / "other"], models / "initial", suite, tmp_path).summary["models"]
    assert 0 <= entry["reward"]["even"]["value"]["mean"] <= 1
    assert entry["reward"]["pairs_margin"]["value"]["mean"] is not None
    assert sum(entry["reward"]["even"][kind] for kind in ("lost", "won")) > 0


def test_win_rates_and_pairs_stand_without_a_reward(models: Path, suite: Path, tmp_path: Path) -> None:
    file = suite.parent / "alone.yaml"
    file.write_text("preferences: {pairs: {rows: {path: pairs.jsonl}}}\n")
    [entry] = measure([models / "far"], models / "initial", file, tmp_path / "a").summary["models"]
    assert len(entry["reward"]) == 4
    file.write_text("win_rates: {even: {reward: 'tiny:reward'}}\n")
    with pytest.raises(SpecError, match="`prompts` is required: even is measured on what models write"):
        load_suite(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reward.proxy.reward_model=nowhere", "nowhere is not a model: there is no such directory"),
        ("reward.proxy.lable=x", "unknown key 'lable' in reward.proxy; did you mean 'label'"),
        ("reward.proxy.chat=true", "has no chat template"),
        ("reward.proxy.label=good", "has no label 'good'"),
        ("reward.proxy={reward_model: judge, template: 'hello'}", "'hello' has no {completion}"),
        ("reward.proxy={reward_model: judge, chat: true, template: '{completion}'}", "either `chat` or `template`"),
        ("reward.others={gold: vader}", "gold has its own place, beside `others`"),
        ("reward.others={a b: vader}", "reward.others"),
        ("reward.others={mine: vadr}", "expected `vader`, `module:function` or"),
        ("reward.proxy={reward_modl: judge}", "reward.proxy: expected `vader`, `module:function` or `text_classifier"),
        ("win_rates.even={judg: {}}", "win_rates.even: expected one of `reward: …`, `causal_lm: …`, `judge: …`"),
        ("win_rates.even=vader", "win_rates.even: expected one of `reward"),
        ("reward.others={even: vader}", "the name 'even' stands 2 times"),
        ("win_rates.even={reward: vadr}", "expected `vader`, `module:function` or"),
        ("win_rates.even={judge: {endpoint: 'ftp://x', model: m}}", "expected https://HOST"),
        (
            "win_rates.even={judge: {endpoint: 'https://x/v1', model: m, key_env: NOT_SET_KEY}}",
            "NOT_SET_KEY is not set",
        ),
        ("win_rates.even={judge: {endpoint: 'https://x/v1', model: m, keyenv: K}}", "unknown key 'keyenv'"),
        ("win_rates.even={causal_lm: judge}", "does not tell A from B"),
        ("preferences.pairs.beta=0", "preferences.pairs.beta"),
        ("preferences.pairs.rows.path=none.jsonl", "none.jsonl: no such file"),
    ],
)
def test_a_wrong_suite_is_one_line(models: Path, suite: Path, change: str, message: str) -> None:
    arguments = [models / "far", "--initial", models / "initial", "--suite", suite, "--set", change]
    done = CliRunner().invoke(app, ["measure", *map(str, arguments)])
    text = " ".join(done.output.split())
    assert done.exit_code == 2, text
    assert text.startswith("error: ")
    assert message in text


def test_paths_of_models_and_functions_start_at_the_suite(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "mine.py").touch()
    made = located(
        {
            "measure": {
                "reward": {
                    "proxy": {"reward_model": "judge", "template": "a/b: {completion}"},
                    "others": {"mine": "mine:f", "rules": {"rules": [{"regex": "a/b:c"}]}},
                },
                "win_rates": {"one": {"reward": {"reward_model": "./judge"}}, "two": {"causal_lm": "owner/name"}},
            }
        },
        tmp_path,
    )["measure"]
    assert made["reward"]["proxy"] == {"reward_model": str(tmp_path / "judge"), "template": "a/b: {completion}"}
    assert made["reward"]["others"] == {"mine": f"{tmp_path}/mine:f", "rules": {"rules": [{"regex": "a/b:c"}]}}
    assert made["win_rates"]["one"]["reward"]["reward_model"] == str(tmp_path / "judge")
    assert made["win_rates"]["two"]["causal_lm"] == "owner/name"


def test_undefined_is_no_mistake_of_the_user() -> None:
    assert not issubclass(Undefined, ValueError)
    assert compare.Undefined is Undefined
