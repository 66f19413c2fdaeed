"""Models against the one before alignment: numbers, what is kept, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import build_classifier_dir
from typer.testing import CliRunner

import untaxed
from untaxed import measuring
from untaxed.checkpoints import load_model, load_tokenizer, save_model
from untaxed.cli import app
from untaxed.comparison import compare, measure
from untaxed.comparison.compare import _subject, paired
from untaxed.comparison.models import opened
from untaxed.comparison.numbers import Scored, _value
from untaxed.comparison.suite_file import load_suite
from untaxed.comparison.verdict import verdict
from untaxed.errors import CheckpointError, DataError, SpecError, StoreError
from untaxed.measuring.quantiles import t_quantile
from untaxed.reporting import measured, measured_card, measured_csv, measured_page
from untaxed.studies.store import locked, read_scores

ENDS = ("low", "high")


@pytest.fixture(scope="module")
def found(models: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Two models measured into a directory; not to be written to."""
    out = tmp_path_factory.mktemp("out") / "measured"
    return dict(measure([models / "near", models / "far"], models / "initial", suite, out).summary), out


def scores(out: Path, key: str, content: str, split: str) -> np.ndarray:
    for file in (out / "scores").glob("scores-*.json"):
        about = json.loads(file.read_text())
        if about["measure"] == key and about["model"] == content:
            return read_scores(file.with_suffix(".npz"))[split]
    raise AssertionError(key)


def test_a_loss_is_the_mean_difference_of_items(found: Any) -> None:
    summary, out = found
    far = summary["models"][1]
    ours = scores(out, "abilities.written", far["content"], "test")[:, 0]
    theirs = scores(out, "abilities.written", summary["initial"]["content"], "test")[:, 0]
    ability = far["abilities"]["written"]
    assert ability["loss"]["mean"] == pytest.approx(theirs.mean() - ours.mean())
    assert ability["lost"] == (theirs > ours).sum() > 0
    assert ability["won"] == (ours > theirs).sum()
    assert ability["items"] == len(ours)
    assert ability["kept"]["mean"] == pytest.approx(ours.mean() / theirs.mean())
    # the standard error of a mean of paired differences is that of the bootstrap, to the noise of 1,000 resamples; one
    # flip each way that was not seen is counted beside it
    error = np.sqrt((theirs - ours).var(ddof=1) / len(ours) + 2 / len(ours) ** 2)
    half = t_quantile(0.975, len(ours) - 1) * error
    assert (ability["loss"]["high"] - ability["loss"]["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_the_tax_is_that_of_the_abilities_that_count(found: Any) -> None:
    far = found[0]["models"][1]
    out = {left["ability"] for left in found[0]["left_out"]}
    kept = [one["kept"]["mean"] for name, one in far["abilities"].items() if name not in out]
    assert far["tax"]["select"]["mean"] == pytest.approx(1 - np.mean(kept))
    assert far["tax"]["report"] == {
        "mean": None, "low": None, "high": None, "n": 0, "why": "no ability of this group counts",
    }  # fmt: skip


def test_adjusted_p_is_benjamini_and_hochbergs(found: Any) -> None:
    from scipy.stats import false_discovery_control

    for entry in found[0]["models"]:
        abilities = list(entry["abilities"].values())
        wanted = false_discovery_control([one["p"] for one in abilities])
        assert [one["q"] for one in abilities] == pytest.approx(list(wanted))


def test_a_model_against_itself_has_lost_nothing(models: Path, suite: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(models / "initial")
    [entry] = measure([copy], models / "near", suite, tmp_path / "a").summary["models"]
    assert entry["abilities"]["written"]["won"] > 0
    [entry] = measure([copy], models / "initial", suite, tmp_path / "b").summary["models"]
    assert entry["drift"]["forward_kl"]["value"]["mean"] == 0
    for one in entry["abilities"].values():
        assert one["loss"]["mean"] == one["lost"] == one["won"] == 0
        assert one["q"] == 1
    assert entry["tax"]["select"]["mean"] == 0


def test_of_one_model_all_items_count_and_of_several_those_of_test(found: Any, models: Path, suite: Path) -> None:
    summary, out = found
    alone = measure([models / "far"], models / "initial", suite, out).summary
    assert (alone["items"], summary["items"]) == ("all", "test")
    assert alone["models"][0]["abilities"]["written"]["items"] > summary["models"][1]["abilities"]["written"]["items"]


def test_what_was_measured_is_not_measured_again(
    found: Any, models: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, out = found
    moved = tmp_path / "renamed"
    moved.symlink_to(models / "far")
    asked: list[list[str]] = []
    inner = measuring.measure
    monkeypatch.setattr(
        measuring, "measure", lambda subject, split, names: asked.append(names) or inner(subject, split, names)
    )
    again = measure([models / "near", moved], models / "initial", suite, out).summary
    assert asked == []
    assert again["models"][1]["abilities"] == summary["models"][1]["abilities"]
    changed = tmp_path / "suite"
    changed.mkdir()
    for file in suite.parent.iterdir():
        (changed / file.name).write_text(file.read_text())
    lines = (changed / "choices.jsonl").read_text().splitlines()
    (changed / "choices.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    measure([moved], models / "initial", changed / "suite.yaml", out)
    assert {name for names in asked for name in names} == {"abilities.choices"}


def test_what_other_code_scored_is_measured_again(
    found: Any, models: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    inner = measuring.measure
    monkeypatch.setattr(measuring, "measure", lambda *given: asked.append(given[2]) or inner(*given))
    monkeypatch.setattr("untaxed.comparison.scores.code", lambda: "another version")
    measure([models / "far"], models / "initial", suite, found[1])
    assert ["abilities.written"] in asked


def test_another_tokenizer_is_measured_but_for_the_kl(models: Path, suite: Path, tmp_path: Path) -> None:
    [entry] = measure([models / "other"], models / "initial", suite, tmp_path).summary["models"]
    assert "its tokenizer is not initial's" in entry["drift"]["forward_kl"]["why"]
    texts = entry["drift"]["texts"]  # a perplexity a token: each has its own, and the two are not one thing
    assert texts["value"]["mean"] is not None
    assert texts["initial"]["mean"] is not None
    assert texts["change"]["why"] == "its tokenizer is not initial's, so that tokens cannot be compared"
    assert (texts["change"]["mean"], texts["p"]) == (None, None)
    assert entry["abilities"]["written"]["loss"]["mean"] is not None


def test_a_larger_vocabulary_is_measured_but_for_the_kl(models: Path, suite: Path, tmp_path: Path) -> None:
    """As of a model whose embedding was padded to a round number."""
    model = load_model(models / "near")
    model.resize_token_embeddings(model.config.vocab_size + 4)
    save_model(model, load_tokenizer(models / "near"), tmp_path / "padded")
    [entry] = measure([tmp_path / "padded"], models / "initial", suite, tmp_path / "out").summary["models"]
    assert re.search(r"are of \d+ tokens and initial's of \d+", entry["drift"]["forward_kl"]["why"])
    assert entry["drift"]["texts"]["change"]["mean"] is not None


def test_equals_are_no_less_tax(models: Path, suite: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(models / "near", tmp_path / "copy")
    (copy / "generation_config.json").write_text("{}")  # another content, the same answers
    found = measure([models / "near", copy], models / "initial", suite, tmp_path / "out").summary
    assert found["front"] == ["near", "copy"]
    assert "near and copy are equal in reward and tax, with the most reward; near on test proxy" in found["verdict"]
    assert "Less tax" not in found["verdict"]


def test_a_share_lies_between_0_and_1(found: Any) -> None:
    summary = found[0]
    written = summary["models"][0]["abilities"]["written"]
    assert written["initial"]["high"] == 1.0
    shares = [one[key] for e in summary["models"] for one in e["abilities"].values() for key in ("value", "initial")]
    assert all(0 <= share["low"] <= share["high"] <= 1 for share in shares)


def test_the_front_is_chosen_on_validation(found: Any) -> None:
    summary, _ = found
    assert set(summary["front"]) <= {"near", "far"}
    assert summary["front"]
    best = summary["front"][0]
    assert summary["verdict"].startswith(f"On validation {best} has the most reward; on test proxy reward ")


def test_general_prompts_and_the_tokens_behind_means(found: Any, models: Path, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "general.jsonl").write_text("".join(json.dumps({"prompt": f"w{n} w{n}"}) + "\n" for n in range(20)))
    file = tmp_path / "suite.yaml"
    file.write_text("general_prompts: {path: general.jsonl}\nmax_new_tokens: 6\n")
    summary = measure([models / "far"], models / "initial", file, tmp_path / "out").summary
    assert [one["name"] for one in summary["measures"]] == ["general_forward_kl"]  # nothing else is sampled from
    one = summary["models"][0]["drift"]["general_forward_kl"]
    kept = [scores(tmp_path / "out", "drift.general_forward_kl", summary["models"][0]["content"], split)
            for split in ("validation", "test")]  # fmt: skip
    total, tokens = np.concatenate(kept).sum(0)
    assert one["value"]["mean"] == pytest.approx(total / tokens)
    assert (one["value"]["n"], one["tokens"]) == (20, tokens)
    assert f"| {tokens:,.0f} tokens |" in measured.markdown(summary)
    assert f"{tokens:,.0f} tokens</td>" in measured_page.html(summary)
    [row] = [row for row in csv.DictReader(io.StringIO(measured_csv.as_csv(summary))) if row["group"] == "drift"]
    assert (row["items"], row["tokens"]) == ("20", str(int(tokens)))
    assert "tokens" not in found[0]["models"][0]["reward"]["proxy"]
    assert found[0]["models"][0]["drift"]["texts"]["tokens"] > 0


def test_what_is_sampled_depends_on_its_own_prompts(suite: Path, tmp_path: Path) -> None:
    folder = suite.parent
    general = tmp_path / "general.jsonl"

    def contents(*lines: str) -> dict[str, str]:
        general.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
        text = (folder / "suite.yaml").read_text().replace("drift: [", "drift: [general_forward_kl, entropy, ")
        (tmp_path / "suite.yaml").write_text(f"{text}general_prompts: {{path: general.jsonl}}\n")
        for file in folder.glob("*.jsonl"):
            (tmp_path / file.name).write_text(file.read_text())
        return dict(load_suite(tmp_path / "suite.yaml").contents)

    many = [f"w{n}" for n in range(20)]
    before, after = contents(*many), contents(*many[1:])
    assert [key for key in before if before[key] != after[key]] == ["drift.general_forward_kl"]
    alone = load_suite(suite).contents
    assert alone == {key: before[key] for key in alone}  # what has nothing to do with them stays as it was
    (tmp_path / "suite.yaml").write_text("prompts: {path: prompts.jsonl}\ngeneral_prompts: {path: general.jsonl}\n")
    assert list(load_suite(tmp_path / "suite.yaml").contents) == ["drift.forward_kl", "drift.general_forward_kl"]


def test_items_show_both_answers(found: Any) -> None:
    far = found[0]["models"][1]
    lost = far["items"]["written"]["lost"]
    assert 0 < len(lost) <= 10
    for item in lost:
        count = len(item["expected"].split())
        assert item["initial"].split()[:count] == item["expected"].split()
        assert item["model"].split()[:count] != item["expected"].split()


def test_markdown_csv_and_page_hold_the_numbers(found: Any) -> None:
    summary, _ = found
    table = list(csv.DictReader(io.StringIO(measured_csv.as_csv(summary))))
    row = next(row for row in table if (row["model"], row["measure"]) == ("far", "written"))
    ability = summary["models"][1]["abilities"]["written"]
    assert float(row["change"]) == -ability["loss"]["mean"]
    assert [float(row[f"initial_{end}"]) for end in ENDS] == [ability["initial"][end] for end in ENDS]
    assert float(row["kept"]) == ability["kept"]["mean"]
    assert int(row["lost"]) == ability["lost"]
    tax = next(row for row in table if (row["model"], row["group"], row["measure"]) == ("far", "tax", "report"))
    assert (tax["value"], tax["why"]) == ("", "no ability of this group counts")
    assert f"{ability['lost']} lost, {ability['won']} won of {ability['items']}" in measured.markdown(summary)
    page = measured_page.html(summary)
    assert "far" in page
    assert "<script" not in page


def test_a_dash_says_which_reason_is_its(models: Path, suite: Path, tmp_path: Path) -> None:
    summary = measure([models / "other"], models / "initial", suite, tmp_path).summary
    stream = io.StringIO()
    measured.terminal(summary, Console(file=stream, width=120))
    why = "its tokenizer is not initial's, so that tokens cannot be compared"
    assert re.search("forward_kl .*–¹", stream.getvalue())
    assert f"¹ {why}" in stream.getvalue()
    text = measured.markdown(summary)
    assert re.search(r"\| forward\\_kl \|.*– \[1\]", text)
    assert f"\n1. {why}\n" in text


def test_the_tax_stands_beside_the_abilities_of_one_model(models: Path, suite: Path, tmp_path: Path) -> None:
    loaded = load_suite(suite, ["abilities.report=[{name: again, kind: exact_match, rows: {path: written.jsonl}}]"])
    summary = measure([models / "far"], models / "initial", loaded, tmp_path).summary
    stream = io.StringIO()
    measured.terminal(summary, Console(file=stream, width=120))
    for group, tax in summary["models"][0]["tax"].items():
        assert re.search(rf"tax, {group} .*{tax['mean']:.3f}", stream.getvalue())
        assert f"| tax, {group} | share not kept |" in measured.markdown(summary)
        assert f"tax, {group}" in measured_page.html(summary)


def test_of_what_cannot_be_lost_nothing_is_said(models: Path, suite: Path, tmp_path: Path) -> None:
    loaded = load_suite(suite)
    choices = loaded.suite.group("abilities")[0]
    hard = replace(choices, chance=0.999)
    measures = [hard if one is choices else one for one in loaded.suite.measures]
    changed = replace(loaded, suite=replace(loaded.suite, measures=measures))
    [entry] = (summary := measure([models / "far"], models / "initial", changed, tmp_path).summary)["models"]
    assert [left["ability"] for left in summary["left_out"]] == ["choices"]
    assert entry["abilities"]["choices"]["q"] is None
    assert entry["abilities"]["written"]["q"] == entry["abilities"]["written"]["p"]  # adjusted for itself alone
    assert summary["verdict"].endswith("; written has lost something that is clear of zero.")


def test_damaged_scores_are_named_alone(models: Path, suite: Path, tmp_path: Path) -> None:
    measure([models / "far"], models / "initial", suite, tmp_path)
    [first, *_] = sorted((tmp_path / "scores").glob("*.npz"))
    first.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=rf"remove {re.escape(str(first))}: what it held is measured again"):
        measure([models / "far"], models / "initial", suite, tmp_path)


def test_an_overview_has_a_column_a_divergence(found: Any) -> None:
    summary = json.loads(json.dumps(found[0]))
    assert measured.divergences(summary) == {"forward_kl": "forward KL"}
    for entry in summary["models"]:
        entry["drift"]["general_forward_kl"] = entry["drift"]["forward_kl"]
    summary["measures"].append({"group": "drift", "name": "general_forward_kl", "unit": "nats a token"})
    stream = io.StringIO()
    measured.terminal(summary, Console(file=stream, width=120))
    for text in (stream.getvalue(), measured.markdown(summary), measured_page.html(summary)):
        assert re.search("forward KL.*general KL", text)
    summary["measures"] = [one for one in summary["measures"] if one["group"] != "drift"]
    assert "KL" not in measured.markdown(summary).split("against initial")[0]


def test_a_model_named_as_the_initial_one_has_its_whole_path(models: Path, suite: Path, tmp_path: Path) -> None:
    model = tmp_path / "initial"
    model.symlink_to(models / "near")
    [entry] = measure([model], models / "initial", suite, tmp_path / "out").summary["models"]
    assert entry["name"] == str((models / "near").resolve())


def test_a_terminal_of_80_columns_breaks_no_name_and_cuts_nothing(found: Any) -> None:
    summary = json.loads(json.dumps(found[0]))
    [entry] = summary["models"] = summary["models"][1:]
    stream = io.StringIO()
    measured.terminal(summary, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    for name, one in entry["abilities"].items():
        at = next(at for at, line in enumerate(lines) if line.startswith(f"{name} "))
        items = " ".join(line[60:].strip() for line in lines[at + 1 : at + 3])
        assert items.endswith(f"{one['lost']} lost, {one['won']} won of {one['items']}")


def test_names_and_items_are_text(found: Any) -> None:
    summary = json.loads(json.dumps(found[0]))
    evil = "=cmd()<script>alert(1)</script>|`x`"
    summary["models"][0]["name"] = evil
    summary["models"][1]["items"]["written"]["lost"][0]["prompt"] = "<img src=x onerror=alert(1)>"
    page = measured_page.html(summary)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<script>" not in measured.markdown(summary)
    assert measured_csv.as_csv(summary).splitlines()[1].startswith("'=cmd()")


def test_a_card_is_metadata_that_the_hub_reads(models: Path, suite: Path, found: Any) -> None:
    import yaml
    from huggingface_hub.repocard_data import model_index_to_eval_results

    code, _ = run(models / "near", models / "far", "--initial", models / "initial", "--suite", suite, "--card")
    assert code == 2
    summary = measure([models / "far"], models / "initial", suite, found[1]).summary
    _, metadata, text = measured_card.card(summary).split("---\n", 2)
    name, results = model_index_to_eval_results(yaml.safe_load(metadata)["model-index"])
    assert name == "far"
    values = {(one.dataset_name, one.metric_type): one.metric_value for one in results}
    entry = summary["models"][0]
    assert values["abilities: written", "accuracy"] == round(entry["abilities"]["written"]["value"]["mean"], 6)
    assert values["select abilities", "alignment_tax"] == round(entry["tax"]["select"]["mean"], 6)
    assert values["drift: texts", "perplexity"] == round(entry["drift"]["texts"]["value"]["mean"], 6)
    assert "lost" in text


def test_the_package_names_it() -> None:
    assert untaxed.measure is measure


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in ("measure", *arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_the_command_prints_and_writes(models: Path, suite: Path, tmp_path: Path) -> None:
    code, text = run(models / "far", "--initial", models / "initial", "--suite", suite, "--out", tmp_path / "out")
    assert code == 0
    assert "far: proxy reward" in text
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "measure.json").read_text())["models"][0]["name"] == "far"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("abilities=null", "abilities: has no value; give one, or leave out"),
        ("preferences=null", "preferences: has no value; give one, or leave out"),
        ("dirft=[]", "unknown key 'dirft'; did you mean 'drift'"),
        ("prompts.path=nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_a_wrong_suite_is_one_line(models: Path, suite: Path, tmp_path: Path, change: str, message: str) -> None:
    code, text = run(models / "far", "--initial", models / "initial", "--suite", suite, "--set", change)
    assert code == 2
    assert text.startswith("error: ")
    assert message in text


def test_what_is_sampled_needs_prompts(suite: Path, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("reward: tiny:reward\n")
    with pytest.raises(SpecError, match="`prompts` is required: the reward is measured on what models write"):
        measure([models / "far"], models / "initial", file)
    file.write_text("drift: []\n")
    with pytest.raises(SpecError, match="nothing is measured"):
        measure([models / "far"], models / "initial", file)


def test_models_that_cannot_be_measured_are_named(suite: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        measure([tmp_path / "none"], models / "initial", suite)
    with pytest.raises(SpecError, match="far is given 2 times; name every model once"):
        measure([models / "far", models / "far"], models / "initial", suite)
    with pytest.raises(SpecError, match="name at least one model"):
        measure([], models / "initial", suite)


def test_what_cannot_be_measured_is_said_before_anything_is(
    suite: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("something was measured"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is a file; name a directory"):
        measure([models / "far"], models / "initial", suite, tmp_path / "file")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    with pytest.raises(StoreError, match="holds a study"):
        measure([models / "far"], models / "initial", suite, tmp_path / "study")
    with pytest.raises(StoreError, match="far holds a model"):
        measure([models / "far"], models / "initial", suite, models / "far")
    judge = build_classifier_dir(tmp_path / "judge")
    with pytest.raises(CheckpointError, match=r"judge is a \w+ForSequenceClassification, which writes no texts"):
        measure([judge], models / "initial", suite, tmp_path / "out")
    with pytest.raises(DataError, match="near: the suite has `chat: true`, and its tokenizer has no chat template"):
        measure([models / "far"], models / "near", load_suite(suite, ["abilities.chat=true"]), tmp_path / "out")
    with pytest.raises(SpecError, match="pocket is the embedded world's suite, which has no keys"):
        load_suite("pocket", ["samples=3"])


def test_a_directory_is_one_measurements_at_a_time(
    suite: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "locked", partial(locked, patience_s=0))
    others = [tmp_path / "other" / ".tmp-theirs" / "file", tmp_path / ".tmp-folder" / "file", tmp_path / ".x.partial"]
    for file in (tmp_path / "scores" / ".tmp-left", tmp_path / ".tmp-left", *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("by a kill, or somebody else's")
    with locked(tmp_path / ".lock", what="it"), pytest.raises(StoreError, match=r"the measurement in .* is in use by"):
        measure([models / "far"], models / "initial", suite, tmp_path)
    measure([models / "far"], models / "initial", suite, tmp_path)
    assert not list(tmp_path.rglob(".tmp-left"))
    assert all(file.exists() for file in others)


def test_without_reward_and_ability_the_drift_is_the_verdict(models: Path, tmp_path: Path, suite: Path) -> None:
    (tmp_path / "suite.yaml").write_text(f"prompts: {{path: {suite.parent / 'prompts.jsonl'}}}\ndrift: [forward_kl]\n")
    summary = measure([models / "far"], models / "initial", tmp_path / "suite.yaml", tmp_path / "out").summary
    value = summary["models"][0]["drift"]["forward_kl"]["value"]
    assert summary["verdict"] == "far: forward_kl {mean:.3g} ({low:.3g} to {high:.3g}).".format(**value)


def test_what_could_not_be_measured_is_the_verdict_where_nothing_could(
    models: Path, tmp_path: Path, suite: Path
) -> None:
    (tmp_path / "suite.yaml").write_text(f"prompts: {{path: {suite.parent / 'prompts.jsonl'}}}\n")
    summary = measure([models / "other"], models / "initial", tmp_path / "suite.yaml", tmp_path / "out").summary
    why = "its tokenizer is not initial's, so that tokens cannot be compared"
    assert summary["verdict"] == f"other: nothing could be measured: {why}."
    entry = {
        "name": "m",
        "reward": {},
        "drift": {},
        "tax": {"select": {"mean": None}},
        "abilities": {"a": {"why": "so"}},
    }
    assert verdict([entry], {})["verdict"] == "m: no ability could be measured: so."


def test_a_share_of_which_no_item_differs_has_a_width(models: Path, tmp_path: Path, suite: Path) -> None:
    loaded = load_suite(suite, ["drift=[refusal]"])
    [entry] = measure([models / "far"], models / "initial", loaded, tmp_path).summary["models"]
    value = entry["drift"]["refusal"]["value"]
    assert (value["mean"], value["low"]) == (0, 0)
    assert value["high"] == pytest.approx(1 - 0.025 ** (1 / value["n"]))  # 0 of n: (1 - p)^n = 0.025
    one = next(one for one in loaded.suite.measures if one.name == "written")
    value = _value(one, np.ones(1001), np.ones((30, 1))).json()
    assert (value["low"], value["high"]) == (pytest.approx(0.025 ** (1 / 30)), 1)  # all of n: p^n = 0.025


def test_an_item_that_no_model_can_read_is_named_with_the_model(suite: Path, models: Path, tmp_path: Path) -> None:
    loaded = load_suite(suite, ["max_new_tokens=100000"])
    with pytest.raises(DataError, match=r"^initial: proxy: prompt 0 has \d+ tokens, and 100000 new ones"):
        measure([models / "far"], models / "initial", loaded, tmp_path / "out")


def test_a_suite_may_be_any_embedded_world() -> None:
    from untaxed import pocket

    loaded = {name: load_suite(name) for name in pocket.WORLDS}
    assert loaded["pocket_safety"].suite.select == (*loaded["pocket"].suite.select, "lookalike")
    assert set(loaded["pocket"].contents.values()).isdisjoint(loaded["pocket_safety"].contents.values())


def test_as_many_items_of_other_tokenizers_need_not_be_the_same_ones() -> None:
    def scored(notes: list[str]) -> Scored:
        splits = {"validation": np.ones((3, 1)), "test": np.ones((4, 1))}
        return Scored({"abilities.long": splits}, notes={"abilities.long": {"test": notes}} if notes else {})

    cut, whole = scored(["too long: 1 of 5 left out"]), scored(["empty: 1 of 4"])
    assert "abilities.long" in paired(cut, cut, same_tokens=True).scores  # one context holds the other's items
    assert "abilities.long" in paired(whole, whole, same_tokens=False).scores
    for pair in ((cut, cut), (cut, whole), (whole, cut)):
        found = paired(*pair, same_tokens=False)
        assert not found.scores
        assert "cannot be paired" in found.why["abilities.long"]


def test_a_model_is_read_with_its_own_template_and_end(models: Path, suite: Path, tmp_path: Path) -> None:
    loaded = load_suite(suite)
    start, near = (opened(models / name, None, tmp_path) for name in ("initial", "near"))
    assert _subject(near, start, loaded).tokenizer is start.tokenizer  # what was encoded once is not encoded again
    for name, change in (("template", {"chat_template": "{{ messages }}"}), ("end", {"eos_token": "w1"})):
        tokenizer = load_tokenizer(models / "near")
        for key, value in change.items():
            setattr(tokenizer, key, value)
        shutil.copytree(models / "near", tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        own = opened(tmp_path / name, None, tmp_path)
        assert _subject(own, start, loaded).tokenizer is own.tokenizer
        assert own.digest != near.digest  # scores of another template or end are not these


def test_a_model_given_as_the_folder_one_stands_in_has_its_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / "near")
    assert Path(opened(".", None, tmp_path).name).name == "near"
    assert opened("../far", None, tmp_path).name == "../far"


def test_only_a_share_of_right_answers_is_an_accuracy_on_a_card(found: Any) -> None:
    summary = json.loads(json.dumps(found[0]))
    summary["models"] = summary["models"][:1]
    next(one for one in summary["measures"] if one["name"] == "written")["unit"] = "overlap"
    assert measured_card.card(summary).count("type: accuracy") == 1
    assert "type: written" in measured_card.card(summary)
