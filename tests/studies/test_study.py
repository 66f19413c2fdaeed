"""A study from its spec to its summary, in one process: what is on disk, what is done again, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from values import values

from untaxed import training
from untaxed.checkpoints import load_weights
from untaxed.errors import DataError, RunFailed, SpecError, StoreError
from untaxed.studies import Study, load_results, run_study, variants
from untaxed.studies import runs as running
from untaxed.studies.events import Event
from untaxed.studies.results import runs
from untaxed.studies.store import read_json, read_scores

RESET = {"elastic_reset": {"decay": 0.5, "reset_every": 2}}


@pytest.fixture(scope="module")
def study(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    methods = [*world["methods"], RESET]
    return run_study({**world, "methods": methods}, tmp_path_factory.mktemp("studies") / "first", workers=0)


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    """The finished study, to be changed at will."""
    return Path(shutil.copytree(study.directory, tmp_path / "copy"))


def plain_run(directory: Path) -> dict[str, Any]:
    return next(run for run in runs(directory) if not run["methods"])


class Listening(list[Event]):
    """Keeps what a study says."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def keys(self, kind: str) -> list[str]:
        return [event.key for event in self if event.kind == kind]


# --- what a study leaves on disk -----------------------------------------------------------------------------------


def test_a_reset_is_measured_before_and_after(study: Study) -> None:
    [run] = [run for run in runs(study.directory) if run["methods"]]
    points = [(point["name"], point["step"], point["phase"], point["steps_since_reset"]) for point in run["points"]]
    assert points == [("step-2-before", 2, "before", 2), ("step-2-after", 2, "after", 0), ("step-4", 4, None, 2)]
    assert run["methods"] == [{"method": "elastic_reset", "decay": 0.5, "reset_every": 2, "update_every": 1}]


def test_validation_is_measured_everywhere_and_test_at_the_end_and_where_chosen(study: Study) -> None:
    points = load_results(study.directory)
    assert all(point["validation"] is not None for point in points)
    assert all(point["test"] is not None for point in points if point["name"] in ("initial", "step-4"))
    summary = study.summary()
    chosen = {(arm["arm"], choice["setting"]) for arm in summary["arms"] for choice in arm["chosen"].values()}
    assert ("averaging", None) not in chosen or len(chosen) > 1
    tested = [point["name"] for point in points if point["test"] is not None and point["variant"]]
    assert len(tested) < 4, "only chosen variants are measured on test"


def test_a_point_says_what_it_is(study: Study) -> None:
    point = plain_run(study.directory)["points"][0]
    assert (point["name"], point["step"], point["variant"], point["phase"]) == ("step-2", 2, None, None)
    assert set(point["validation"]) == {"reward", "abilities", "drift"}
    assert point["validation"]["reward"]["gold"] is None
    assert set(point["validation"]["abilities"]) == {"one", "two"}
    variants = [p["variant"] for p in plain_run(study.directory)["points"] if p["variant"]]
    assert {"method": "averaging", "initial_share": 0.2, "of": "best_proxy"} in variants


def test_scores_give_the_values_and_texts_are_kept(study: Study) -> None:
    run = plain_run(study.directory)
    folder = study.directory / "runs" / run["key"]
    scores = read_scores(folder / "scores.npz")
    for point in run["points"]:
        for split in ("validation", "test"):
            key = f"{point['name']}/{split}/abilities.one"
            assert (key in scores) == (point[split] is not None)
            if key in scores:
                assert scores[key].mean() == point[split]["abilities"]["one"]
    texts = read_json(folder / "texts.json")
    assert set(texts) == {point["name"] for point in run["points"]}
    assert all(set(text) == {"prompt", "completion", "proxy", "gold"} for text in texts["step-4"])
    assert len(texts["step-4"]) == 8


def test_a_checkpoint_that_is_last_and_best_is_averaged_and_measured_once(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    inner = variants.measure_point
    monkeypatch.setattr(variants, "measure_point", lambda *a: measured.append(a[2]["name"]) or inner(*a))
    spec = {**world, "algorithm": {**world["algorithm"], "max_steps": 2}, "methods": world["methods"][:1]}
    run_study(spec, tmp_path, workers=0)
    run_study({**spec, "methods": world["methods"]}, tmp_path, workers=0)
    run = plain_run(tmp_path)
    points = {tuple((point["variant"] or {}).values()): point for point in run["points"]}
    scores = read_scores(tmp_path / "runs" / run["key"] / "scores.npz")
    texts = read_json(tmp_path / "runs" / run["key"] / "texts.json")
    for share in (0.2, 0.6):
        last, best = points["averaging", share, "last"], points["averaging", share, "best_proxy"]
        assert last["validation"] == best["validation"]
        assert last["variant"]["of"] == "last"
        assert texts[last["name"]] == texts[best["name"]]
        for key in [key for key in scores if key.startswith(f"{last['name']}/validation/")]:
            np.testing.assert_array_equal(scores[key], scores[key.replace(last["name"], best["name"])])
    assert measured[:2] == ["averaging-0.2@last", "averaging-0.6@last"]
    assert not [name for name in measured if name.endswith("@best_proxy")]  # nor on test


def test_a_chosen_variant_has_a_card_with_its_tax_table(study: Study) -> None:
    made = [
        (study.directory / "runs" / run["key"] / point["weights"] / "README.md", point)
        for run in runs(study.directory)
        for point in run["points"]
        if point["variant"] and point["weights"]
    ]
    assert made
    for path, point in made:
        card = path.read_text()
        assert f"initial_share: {point['variant']['initial_share']}" in card
        rows = {line.split("|")[1].split("(")[0].strip(): line for line in card.splitlines() if line.startswith("| ")}
        for group in ("reward", "abilities", "drift"):
            for name, value in point["test"][group].items():
                assert value is None or f" {value:.3f} |" in rows[name], name


def test_a_variant_is_the_average_of_its_checkpoint_and_the_initial_model(study: Study, tiny_initial: Path) -> None:
    run = plain_run(study.directory)
    [point] = [p for p in run["points"] if p["variant"] and p["weights"]][:1]
    share = point["variant"]["initial_share"]
    assert point["variant"]["of"] == "last"
    folder = study.directory / "runs" / run["key"] / "weights"
    initial, last, made = (load_weights(path) for path in (tiny_initial, folder / "step-4", folder / point["name"]))
    for name, tensor in made.items():
        np.testing.assert_allclose(tensor, share * initial[name] + (1 - share) * last[name], atol=1e-6)


def test_no_file_holds_nan_and_nothing_half_made_stays(study: Study) -> None:
    for path in study.directory.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    names = [path.name for path in study.directory.rglob("*")]
    assert not [name for name in names if name.startswith(".tmp") or name.endswith(".partial") or "progress" in name]
    assert "resume" not in names


def test_study_json_says_what_and_where(study: Study) -> None:
    about = read_json(study.directory / "study.json")
    assert about["spec"]["algorithm"]["max_steps"] == 4
    assert about["versions"]["trl"]
    assert {measure["name"] for measure in about["measures"]} >= {"proxy", "one", "two", "forward_kl", "perplexity"}
    assert (about["select"], about["report"]) == (["one"], ["two"])
    [averaging] = [arm for arm in about["arms"] if arm["arm"] == "averaging"]
    assert [setting["variant"] for setting in averaging["settings"]] == [
        {"method": "averaging", "initial_share": share} for share in (0.2, 0.6)
    ]
    assert {setting["runs"]["0"] for setting in averaging["settings"]} == {plain_run(study.directory)["key"]}


def test_keep_decides_which_weights_stay(study: Study) -> None:
    """Chosen ones and those that `keep` names; the others go, and their points say so."""
    for run in runs(study.directory):
        folder = study.directory / "runs" / run["key"] / "weights"
        named = {point["weights"].removeprefix("weights/") for point in run["points"] if point["weights"]}
        assert named == {path.name for path in folder.iterdir()}
        assert "step-4" in named


def test_the_same_seed_gives_the_same_weights_with_and_without_measuring(
    study: Study, world: dict[str, Any], tiny_initial: Path, tmp_path: Path
) -> None:
    from untaxed.studies.bench import prepare
    from untaxed.studies.spec import parse_spec

    bench = prepare(parse_spec(world))
    trainer = training.make_trainer("dpo", bench.arguments, task=bench.task, seed=0, output_dir=tmp_path)
    training.train(trainer, every=2)
    run = plain_run(study.directory)
    measured = load_weights(study.directory / "runs" / run["key"] / "weights" / "step-4")
    for name, tensor in trainer.model.named_parameters():
        np.testing.assert_array_equal(tensor.detach().numpy(), measured[name].numpy())


def test_an_on_policy_study_leaves_the_same_files(world: dict[str, Any], tmp_path: Path) -> None:
    sampling = {"max_steps": 2, "batch_size": 8, "num_generations": 2, "max_completion_length": 4}
    algorithm = {"name": "rloo", "learning_rate": 1e-3, **sampling}
    data = {"prompts": world["data"]["prompts"]}
    study = run_study({**world, "algorithm": algorithm, "data": data, "methods": ["plain"]}, tmp_path, workers=0)
    assert not study.failed
    [run] = runs(tmp_path)
    assert [point["name"] for point in run["points"]] == ["step-2"]
    assert run["points"][0]["test"] is not None


# --- going on ------------------------------------------------------------------------------------------------------


def test_a_finished_study_does_nothing_again(study: Study, world: dict[str, Any], copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("result.json")}
    heard = Listening()
    run_study({**world, "methods": [*world["methods"], RESET]}, copy, workers=0, progress=heard)
    assert heard.keys("plan") == []
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("result.json")} == before


def test_arms_and_seeds_may_be_added(study: Study, world: dict[str, Any], copy: Path) -> None:
    old = {run["key"]: run for run in runs(copy)}
    shares = {"averaging": {"initial_share": {"sweep": [0.2, 0.4, 0.6]}}}
    heard = Listening()
    changed = {**world, "methods": ["plain", "early_stopping", shares, RESET], "seeds": [0, 1]}
    run_study(changed, copy, workers=0, progress=heard)
    assert len(heard.keys("plan")) == 3  # two runs of the new seed, and one new share of the old
    new = {run["key"]: run for run in runs(copy)}
    assert len(new) == 4
    for key, run in old.items():
        assert new[key]["train_seconds"] == run["train_seconds"], "nothing was trained again"
        names = [point["name"] for point in new[key]["points"]]
        assert [point["name"] for point in run["points"]] == names[: len(run["points"])]
    assert "averaging-0.4@last" in [point["name"] for point in new[plain_run(study.directory)["key"]]["points"]]


def test_a_study_of_other_models_data_algorithm_or_measures_is_refused(
    world: dict[str, Any], copy: Path, tmp_path: Path
) -> None:
    before = (copy / "study.json").read_bytes()
    rows = Path(world["data"]["prompts"]["path"])
    other = str(shutil.copy(rows, tmp_path / "other.jsonl"))
    for change, line in [
        ({"algorithm": {**world["algorithm"], "max_steps": 6}}, "algorithm.max_steps was 4, now 6"),
        ({"algorithm": {**world["algorithm"], "name": "ipo"}}, "algorithm.name was 'dpo', now 'ipo'"),
        ({"measure": {**world["measure"], "every": 1}}, "measure.every was 2, now 1"),
        ({"data": {**world["data"], "prompts": {"path": other}}}, "data.prompts.path was"),
        ({"keep": ["last"]}, "keep was"),
    ]:
        with pytest.raises(StoreError, match=line):
            run_study({**world, **change}, copy, workers=0)
    assert (copy / "study.json").read_bytes() == before


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def killed_after(patch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Kills the process, so to speak, at a call of one of the functions that runs use."""
    function, counted = getattr(running, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted[0] += 1
        if counted[0] > calls:
            raise Killed
        return function(*args, **kwargs)

    for module in (running, variants):
        patch.setattr(module, name, counting)


@pytest.mark.parametrize(
    ("name", "calls", "every"),
    [("measure", 3, 1), ("save_model", 1, None), ("save_model", 3, 1), ("measure", 7, None), ("measure", 11, None)],
)
def test_a_killed_study_ends_as_an_unkilled_one(
    study: Study, world: dict[str, Any], tmp_path: Path, name: str, calls: int, every: int | None
) -> None:
    spec = {**world, "methods": [*world["methods"], RESET], "checkpoint_every": every}
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, name, calls)
        with pytest.raises(Killed):
            run_study(spec, tmp_path, workers=0)
    run_study(spec, tmp_path, workers=0)
    assert values(tmp_path) == values(study.directory)


def test_weights_that_were_not_kept_are_trained_again(study: Study, world: dict[str, Any], copy: Path) -> None:
    """A choice may fall on a step whose weights are gone, since more seeds move the mean."""
    key = plain_run(copy)["key"]
    result = read_json(copy / "runs" / key / "result.json")
    for point in result["points"]:
        if point["name"] == "step-4":
            point["test"] = None
            point["weights"] = None
    (copy / "runs" / key / "result.json").write_text(json.dumps(result))
    shutil.rmtree(copy / "runs" / key / "weights" / "step-4")
    heard = Listening()
    run_study({**world, "methods": [*world["methods"], RESET]}, copy, workers=0, progress=heard)
    assert any("trained again" in event.text for event in heard)
    assert values(copy) == values(study.directory)


# --- runs that fail ------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of seed 1 stops with a loss that is not a number."""
    train = training.train

    def failing(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.args.seed == 1:
            raise RunFailed("the loss is nan at step 3; lower learning_rate")
        return train(trainer, *args, **kwargs)

    monkeypatch.setattr(training, "train", failing)


def test_a_run_that_fails_is_kept_with_its_reason_and_tried_again_when_asked(
    world: dict[str, Any], tmp_path: Path, broken_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**world, "methods": ["plain"], "seeds": [0, 1]}
    study = run_study(spec, tmp_path, workers=0)
    assert [(run["seed"], run["why"]) for run in study.failed] == [
        (1, "the loss is nan at step 3; lower learning_rate")
    ]
    by_seed = {run["seed"]: run for run in runs(tmp_path)}
    assert (by_seed[0]["status"], by_seed[1]["status"]) == ("done", "failed")
    assert "RunFailed" in (tmp_path / "runs" / by_seed[1]["key"] / "error.txt").read_text()
    heard = Listening()
    assert run_study(spec, tmp_path, workers=0, progress=heard).failed
    assert heard.keys("plan") == []
    monkeypatch.undo()
    assert not run_study(spec, tmp_path, workers=0, retry_failed=True).failed
    assert not (tmp_path / "runs" / by_seed[1]["key"] / "error.txt").exists()


def test_a_full_disk_stops_the_study_and_fails_no_run(
    study: Study, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**world, "methods": [*world["methods"], RESET]}
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: Any) -> None:
            raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")

        patch.setattr(running, "save_model", full)
        with pytest.raises(StoreError, match="no space left on the device"):
            run_study(spec, tmp_path, workers=0)
    assert not list(tmp_path.glob("runs/*/result.json"))
    run_study(spec, tmp_path, workers=0)
    assert values(tmp_path) == values(study.directory)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_is_still_full_is_said_as_the_first_time(
    study: Study, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The second attempt meets it elsewhere: where the trainer makes its folder, in a worker too."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        for name in ("study.json", "initial"):
            copied = shutil.copytree if (study.directory / name).is_dir() else shutil.copy
            copied(study.directory / name, tmp_path / name)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "filler").write_bytes(bytes(2_000_000))
        with pytest.raises(StoreError, match=r"^no space left on the disk while writing .*: make room and give"):
            run_study({**world, "methods": [*world["methods"], RESET]}, tmp_path, workers=workers)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- what is refused before anything is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"methods": ["plain", "averagin"]}, SpecError, "unknown method 'averagin'; did you mean 'averaging'"),
        ({"algorithm": {"name": "dpo", "max_stps": 3}}, SpecError, "no argument 'max_stps'; did you mean 'max_steps'"),
        ({"algorithm": {"name": "dpo", "data_seed": 3}}, SpecError, "data_seed cannot be set: seeds are a key of"),
        ({"models": {"initial": "/nowhere/model"}}, ValueError, "/nowhere/model"),
    ],
)
def test_nothing_is_written_for_a_spec_that_is_wrong(
    world: dict[str, Any], tmp_path: Path, change: dict[str, Any], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        run_study({**world, **change}, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ("nan", "reward 'proxy', row 0: expected a finite number, got nan"),
        ("short", "returned 1 values"),
    ],
)
def test_a_reward_that_returns_nonsense_stops_before_training(
    world: dict[str, Any], tmp_path: Path, reward: str, line: str
) -> None:
    measure = {**world["measure"], "reward": {"proxy": f"study_rewards:{reward}"}}
    with pytest.raises(DataError, match=line):
        run_study({**world, "measure": measure}, tmp_path, workers=0)
    assert not list(tmp_path.glob("runs/*"))


# --- given checkpoints ---------------------------------------------------------------------------------------------


def test_given_checkpoints_are_judged_like_trained_ones(study: Study, world: dict[str, Any], tmp_path: Path) -> None:
    key = plain_run(study.directory)["key"]
    weights = study.directory / "runs" / key / "weights"
    given = {name: str(shutil.copytree(weights / "step-4", tmp_path / name)) for name in ("ckpt-100", "ckpt-200")}
    spec = {k: v for k, v in world.items() if k not in ("algorithm", "seeds")}
    spec |= {"models": {**world["models"], "aligned": list(given.values())}}
    spec["data"] = {"prompts": world["data"]["prompts"]}
    judged = run_study(spec, tmp_path / "out", workers=0)
    [run] = runs(judged.directory)
    points = {point["name"]: point for point in run["points"]}
    assert [points[f"step-{n}"]["weights"] for n in (100, 200)] == list(given.values())
    trained = {point["name"]: point for point in plain_run(study.directory)["points"]}
    assert points["step-200"]["validation"] == trained["step-4"]["validation"]
    assert points["averaging-0.2@last"]["validation"] == trained["averaging-0.2@last"]["validation"]
    assert all(Path(path).is_dir() for path in given.values()), "what others made is never removed"
    assert run["train_seconds"] is None
    with pytest.raises(SpecError, match="given checkpoints belong to one training"):
        run_study({**spec, "seeds": [0, 1]}, tmp_path / "more", workers=0)
