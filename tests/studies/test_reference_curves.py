"""Curves that train nothing, within a study: what is drawn, what is made of two, and what the report says of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from values import values

from untaxed import training
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.decoding import LogitMixture
from untaxed.errors import SpecError, Unsupported
from untaxed.measuring import Subject, measure
from untaxed.reporting import html
from untaxed.reporting.markdown import markdown
from untaxed.reporting.tables import arms_table, drift_tokens
from untaxed.studies import Study, load_results, of_initial, run_study
from untaxed.studies.arms import plan_arms, setting_key
from untaxed.studies.bench import prepare
from untaxed.studies.results import runs
from untaxed.studies.spec import parse_spec
from untaxed.studies.store import Store, read_scores
from untaxed.studies.study import planned

BEST = {"best_of_n": {"n": {"sweep": [1, 2, 6]}, "samples": 6}}
MIXED = {"logit_mixing": {"initial_share": {"sweep": [0.0, 0.4, 1.0]}}}
METHODS = ["plain", "early_stopping", BEST, MIXED]
ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """What no handler catches, as little as a kill."""


@pytest.fixture(scope="module")
def spec(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    general = tmp_path_factory.mktemp("general") / "general.jsonl"
    general.write_text("".join(json.dumps({"prompt": f"w{n} w{n}"}) + "\n" for n in range(20)))
    drift = [*world["measure"]["drift"], "reverse_kl", "length", "general_forward_kl", "general_length"]
    measure = {**world["measure"], "drift": drift, "general_prompts": {"path": str(general)}}
    return {**world, "methods": METHODS, "keep": ["last"], "measure": measure}


@pytest.fixture(scope="module")
def study(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(spec, tmp_path_factory.mktemp("curves") / "out", workers=0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a pass over the prompts."""
    seen: list[int] = []
    inner = of_initial.sample
    monkeypatch.setattr(of_initial, "sample", lambda *args: seen.append(args[-1].seed) or inner(*args))
    return seen


def entry(study: Study, name: str) -> dict[str, Any]:
    return next(arm for arm in study.summary()["arms"] if arm["arm"] == name)


def points(study: Study, method: str) -> dict[str, dict[str, Any]]:
    found = [point for point in load_results(study.directory) if (point["variant"] or {}).get("method") == method]
    return {point["name"]: point for point in found}


def of_run(study: Study, *, initial: bool) -> dict[str, Any]:
    [run] = [run for run in runs(study.directory) if (run.get("of") == "initial") == initial]
    return run


# --- best of n --------------------------------------------------------------------------------------------------------


def test_every_n_is_read_off_the_same_responses(study: Study) -> None:
    folder = study.directory / "runs" / of_run(study, initial=True)["key"] / "made" / "responses@initial"
    numbers = read_scores(folder / "validation.npz")
    assert {key: value.shape for key, value in numbers.items()} == dict.fromkeys(
        ["tokens", "reward.proxy", "drift.length"], (24, 6)
    )
    found = {name: point["validation"] for name, point in points(study, "best_of_n").items()}
    assert list(found) == [f"best_of_n-{n}-6@initial" for n in (1, 2, 6)]
    one, two, six = (found[f"best_of_n-{n}-6@initial"] for n in (1, 2, 6))
    assert one["reward"]["proxy"] == pytest.approx(numbers["reward.proxy"].mean())
    assert six["reward"]["proxy"] == pytest.approx(numbers["reward.proxy"].max(axis=1).mean())
    assert one["reward"]["proxy"] < two["reward"]["proxy"] < six["reward"]["proxy"]
    assert one["drift"]["length"] == pytest.approx(numbers["tokens"].mean())
    assert one["reward"]["gold"] is None  # the study has none


def test_abilities_are_those_of_initial_and_drift_is_the_formulas(study: Study) -> None:
    initial = load_results(study.directory)[0]
    six = points(study, "best_of_n")["best_of_n-6-6@initial"]
    assert six["validation"]["abilities"] == initial["validation"]["abilities"]
    drift = six["validation"]["drift"]
    assert drift["reverse_kl"] == pytest.approx((math.log(6) - 5 / 6) / drift["length"])
    assert drift["forward_kl"] is None
    assert drift["perplexity"] is None
    assert six["why"]["drift.forward_kl"] == "best-of-n has no closed form for the probability of a given text"
    assert "by the formula" in six["why"]["drift.reverse_kl"]
    not_drawn = "best-of-n's responses are drawn after the prompts of alignment, not after the general ones"
    assert six["why"]["drift.general_forward_kl"] == six["why"]["drift.general_length"] == not_drawn
    assert six["weights"] is None


def test_drift_on_general_prompts_stands_beside_the_other_with_its_tokens(study: Study) -> None:
    summary = study.summary()
    plain = entry(study, "plain")["drift"]
    assert 0 < plain["general_forward_kl"]["mean"] != plain["forward_kl"]["mean"] > 0
    assert entry(study, "logit_mixing")["drift"]["general_length"]["mean"] > 0
    kept = read_scores(study.directory / "initial" / "scores.npz")
    tokens = {
        name: int(kept[f"initial/test/drift.{name}"][:, 1].sum()) for name in ("forward_kl", "general_forward_kl")
    }
    assert {name: summary["initial"]["drift"][name]["tokens"] for name in tokens} == tokens
    assert "tokens" not in summary["initial"]["drift"]["general_length"]
    said = f"of initial: forward_kl {tokens['forward_kl']:,}, "
    assert said in drift_tokens(summary)
    assert f"general_forward_kl {tokens['general_forward_kl']:,}" in drift_tokens(summary)
    assert drift_tokens(summary) in html(study.directory)
    assert said in markdown(summary).replace("\\_", "_")
    assert "drift, general KL" in [column.title for column in arms_table(summary).columns]


def test_the_summary_says_what_the_curve_is(study: Study) -> None:
    arm = entry(study, "best_of_n")
    assert (arm["runs"], arm["seconds"]["mean"], arm["settings"]) == (0, None, 3)
    assert arm["decoding"]["mean"] == 6
    assert {name: arm["tax"][name]["mean"] for name in ("ship", "last")} == {"ship": 0.0, "last": 0.0}
    assert "0 by construction" in arm["tax"]["ship"]["why"]
    assert arm["drift"]["forward_kl"]["mean"] is None
    assert "no closed form" in arm["drift"]["forward_kl"]["why"]
    assert "upper bound" in arm["drift"]["reverse_kl"]["why"]
    told = [line for line in study.summary()["caveats"] if line.startswith("best_of_n is a reference curve")]
    assert len(told) == 1
    assert "its tax is 0 by construction" in told[0]
    assert "best_of_n" not in study.summary()["verdict"]
    page = html(study.directory)
    for text in ("best_of_n (reference)", "times the decoding", "drift, reverse KL", "n=6, of the initial model"):
        assert text in page
    assert page.count("its tax is 0 by construction") == 1 + 2  # above, and under plot and table
    assert "best\\_of\\_n (reference)" in markdown(study.summary())


def test_it_needs_no_training_and_no_plain(
    spec: dict[str, Any], tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", None)
    run_study({**spec, "methods": [BEST], "seeds": [0, 1]}, tmp_path, workers=0)
    assert len(drawn) == len(set(drawn)) == 2 * 2 * 6  # seeds, splits, draws
    assert not list(tmp_path.glob("runs/*/weights"))


def test_a_killed_run_draws_only_the_rest_and_more_only_what_is_new(
    spec: dict[str, Any], study: Study, tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, inner = {**spec, "methods": [BEST]}, of_initial.sample

    def deadly(*args: Any) -> Any:
        if len(drawn) == 4:
            raise Killed
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(of_initial, "sample", deadly)
        with pytest.raises(Killed):
            run_study(spec, tmp_path / "killed", workers=0)
    assert len(drawn) == 4
    killed = run_study(spec, tmp_path / "killed", workers=0)
    assert len(drawn) == 12
    whole = of_run(study, initial=True)["points"]
    assert [point["validation"] for point in of_run(killed, initial=True)["points"]] == [
        point["validation"] for point in whole
    ]
    more = {"best_of_n": {"n": {"sweep": [1, 2, 6]}, "samples": 8}}
    run_study({**spec, "methods": [BEST, more]}, tmp_path / "killed", workers=0)
    assert len(drawn) == 12 + 4


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(spec: dict[str, Any], tmp_path: Path) -> None:
    gold = {**spec["measure"], "reward": {"gold": "tiny:reward"}}
    with pytest.raises((SpecError, Unsupported), match="proxy"):
        run_study({**spec, "measure": gold}, tmp_path / "out", workers=0)
    cold = {**spec["measure"], "temperature": 0}
    with pytest.raises(Unsupported, match=r"measure\.temperature 0"):
        run_study({**spec, "measure": cold}, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


# --- logits of two ----------------------------------------------------------------------------------------------------


def test_what_is_measured_is_the_model_made_of_two(study: Study, spec: dict[str, Any]) -> None:
    bench, run = prepare(parse_spec(spec)), of_run(study, initial=False)
    last = next(point for point in run["points"] if point["name"] == "step-4")
    aligned = load_model(study.directory / "runs" / run["key"] / last["weights"])
    mixture = LogitMixture(bench.initial.model, aligned, 0.4)
    tokenizer = load_tokenizer(spec["models"]["initial"])
    reading = measure(Subject(mixture, tokenizer, bench.suite, initial=bench.initial), "validation")
    found = points(study, "logit_mixing")
    mixed = found["logit_mixing-0.4@last"]["validation"]
    assert {name: mixed[name] for name in ("abilities", "drift")} == {
        name: reading.values[name] for name in ("abilities", "drift")
    }
    assert mixed["reward"]["proxy"] == reading.values["reward"]["proxy"]
    assert found["logit_mixing-0.0@last"]["validation"] == last["validation"]  # the ends, to the bit
    initial = load_results(study.directory)[0]["validation"]
    assert found["logit_mixing-1.0@last"]["validation"] == initial
    assert mixed not in (last["validation"], initial)


def test_it_is_tested_without_saved_weights(study: Study) -> None:
    found = points(study, "logit_mixing")
    assert any(point["test"] is not None for point in found.values())
    assert all(point["weights"] is None for point in found.values())
    assert not list(study.directory.glob("runs/*/weights/logit_mixing*"))
    arm = entry(study, "logit_mixing")
    assert arm["yardstick"].startswith("a reference curve, left out of the verdict: it is no model that can be saved")
    assert {one["values"]["initial_share"]: one["decoding"] for one in _settings(study, "logit_mixing")} == {
        **{0.0: 1, 0.4: 2, 1.0: 1}
    }
    assert arm["runs"] == 1  # plain's


def _settings(study: Study, name: str) -> list[dict[str, Any]]:
    about = json.loads((study.directory / "study.json").read_text())
    [arm] = [arm for arm in about["arms"] if arm["arm"] == name]
    return [{"decoding": 1, **setting} for setting in arm["settings"]]


def test_it_stands_last_behind_training_and_merges(spec: dict[str, Any], study: Study, tmp_path: Path) -> None:
    composed = [{"averaging": {"initial_share": 0.5}}, {"logit_mixing": {"initial_share": 0.4}}]
    copy = Path(shutil.copytree(study.directory, tmp_path / "out"))
    both = run_study({**spec, "methods": [*METHODS, composed]}, copy, workers=0)
    assert not both.failed
    names = [point["name"] for point in of_run(both, initial=False)["points"]]
    assert "averaging-0.5+logit_mixing-0.4@last" in names
    assert values(both.directory)["points"] != values(study.directory)["points"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            [{"logit_mixing": {"initial_share": 0.4}}, {"averaging": {"initial_share": 0.5}}],
            r"methods\.0: logit_mixing mixes models as they write, .* stands behind it \(averaging\); put it last",
        ),
        (
            [{"elastic_reset": {"decay": 0.5, "reset_every": 2}}, {"best_of_n": {"n": 2}}],
            r"methods\.0: best_of_n is about the initial model alone, which elastic_reset cannot change; make it",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(methods: list[Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_arms([methods])


# --- beside other studies ---------------------------------------------------------------------------------------------


def test_both_are_judged_beside_given_checkpoints(study: Study, spec: dict[str, Any], tmp_path: Path) -> None:
    run = of_run(study, initial=False)
    weights = study.directory / "runs" / run["key"] / "weights" / "step-4"
    given = {k: v for k, v in spec.items() if k not in ("algorithm", "seeds")}
    given |= {"models": {**spec["models"], "aligned": [str(shutil.copytree(weights, tmp_path / "ckpt-4"))]}}
    given["data"] = {"prompts": spec["data"]["prompts"]}
    judged = run_study(given, tmp_path / "out", workers=0)
    assert not judged.failed
    for method in ("best_of_n", "logit_mixing"):
        before, now = points(study, method), points(judged, method)
        assert {name: point["validation"] for name, point in now.items()} == {
            name: point["validation"] for name, point in before.items()
        }


def test_the_plan_counts_draws_and_passes(spec: dict[str, Any], tmp_path: Path) -> None:
    def plan(*methods: Any) -> Any:
        return planned({**spec, "methods": ["plain", *methods]}, tmp_path, 0)[1]

    mixed, averaged = plan(MIXED), plan({"averaging": {"initial_share": {"sweep": [0.0, 0.4, 1.0]}}})
    assert mixed.points == averaged.points
    assert mixed.disk_bytes < averaged.disk_bytes  # nothing to save
    labels, cost = planned({**spec, "methods": ["plain", BEST]}, tmp_path, 0)
    assert [label.split("  ")[1] for label in labels] == ["plain, seed 0", "best_of_n of the initial model, seed 0"]
    assert cost.runs == 2


@pytest.mark.parametrize("about", sorted((ROOT / "benchmarks" / "results").glob("*/study.json")), ids=str)
def test_the_keys_of_committed_results_stay(about: Path) -> None:
    known = json.loads(about.read_text())
    for arm, planned_arm in zip(known["arms"], plan_arms(known["spec"]["methods"]), strict=True):
        for setting, planned_setting in zip(arm["settings"], planned_arm.settings, strict=True):
            for seed, key in setting["runs"].items():
                assert setting_key(known["identity"], planned_setting, int(seed)) == key


def test_scores_that_are_lacking_without_a_reason_are_damage(study: Study, tmp_path: Path) -> None:
    from untaxed.errors import StoreError
    from untaxed.studies.sound import check_results

    copy = Path(shutil.copytree(study.directory, tmp_path / "out"))
    path = copy / "runs" / of_run(study, initial=True)["key"] / "result.json"
    result = json.loads(path.read_text())
    for point in result["points"]:
        del point["why"]["drift.forward_kl"]
    path.write_text(json.dumps(result))
    with pytest.raises(StoreError, match=r"holds no best_of_n-1-6@initial/validation/drift\.forward_kl"):
        check_results(Store(copy), [result["key"]])
    assert np.isfinite(of_run(study, initial=True)["seconds"])
