"""What runs share: the embedded world's defaults, a quick look, the steps of given checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from untaxed import pocket
from untaxed.errors import SpecError, Unsupported
from untaxed.measuring import measure
from untaxed.studies.bench import prepare
from untaxed.studies.record import differences
from untaxed.studies.sources import WORLDS
from untaxed.studies.spec import load_spec, parse_spec

POCKET: dict[str, Any] = {"name": "p", "models": {"initial": "pocket"}, "methods": ["plain"]}


def test_the_embedded_world_fills_everything_in() -> None:
    facts = prepare(parse_spec(POCKET)).facts()
    assert facts["every"] == pocket.EVERY
    assert facts["identity"]["algorithm"]["name"] == "dpo"
    assert facts["steps"] == facts["identity"]["algorithm"]["max_steps"]
    assert facts["parameters"] > 100_000
    assert {"proxy", "gold", "facts", "forward_kl"} <= {one["name"] for one in facts["measures"]}


def test_the_names_of_the_embedded_worlds_are_those_of_a_spec() -> None:
    assert tuple(pocket.WORLDS) == WORLDS


def test_a_study_of_the_second_world_has_its_models_abilities_and_prompts() -> None:
    bench = prepare(parse_spec({**POCKET, "models": {"initial": "pocket_safety"}, "measure": {"items": 6}}))
    world = pocket.WORLDS["pocket_safety"]
    assert (bench.task.initial, bench.task.pretrained) == (world.initial_path(), pocket.pretrained_path())
    assert "lookalike" in bench.facts()["select"]
    assert bench.suite.prompts["test"] == tuple(world.prompts("test")[:6])
    assert not set(bench.runs) & set(prepare(parse_spec(POCKET)).runs)


def test_a_given_checkpoint_may_be_any_embedded_world() -> None:
    spec = parse_spec({**POCKET, "models": {"initial": "pocket", "aligned": ["pocket", "pocket_safety"]}})
    assert list(prepare(spec).aligned.values()) == [world.initial_path() for world in pocket.WORLDS.values()]


def test_a_quick_look_measures_fewer_items() -> None:
    bench = prepare(parse_spec({**POCKET, "measure": {"items": 6}}))
    reading = measure(bench.initial, "validation", ["reward.gold", "abilities.facts"])
    assert {len(scores) for scores in reading.scores.values()} == {6}


def test_a_run_is_another_when_its_arguments_are() -> None:
    plain = prepare(parse_spec(POCKET))
    longer = prepare(parse_spec({**POCKET, "algorithm": {"name": "dpo", "max_steps": 7}}))
    measured_more = prepare(parse_spec({**POCKET, "measure": {"every": 1}}))
    assert set(plain.runs) == set(measured_more.runs)
    assert not set(plain.runs) & set(longer.runs)


@pytest.mark.parametrize(
    ("names", "steps"),
    [(["ckpt-100", "ckpt-200"], [100, 200]), (["ckpt-200", "ckpt-100"], [1, 2]), (["first", "ckpt-7"], [1, 2])],
)
def test_given_checkpoints_have_the_steps_that_their_names_say(
    world: dict[str, Any], tiny_initial: Path, tmp_path: Path, names: list[str], steps: list[int]
) -> None:
    paths = [str(shutil.copytree(tiny_initial, tmp_path / name)) for name in names]
    spec = {key: value for key, value in world.items() if key != "algorithm"}
    bench = prepare(parse_spec({**spec, "models": {**world["models"], "aligned": paths}}))
    assert list(bench.aligned) == steps
    assert [path.name for path in bench.aligned.values()] == names
    assert bench.steps == steps[-1]


def test_a_data_file_changed_in_place_makes_other_runs(world: dict[str, Any]) -> None:
    before = prepare(parse_spec(world))
    file = Path(world["data"]["preferences"]["path"])
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    after = prepare(parse_spec(world))
    assert before.identity["data"] != after.identity["data"]
    assert not set(before.runs) & set(after.runs)


def test_a_changed_reward_makes_other_runs_and_is_named(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text("def sweet(prompts, completions):\n    return [1.0 for _ in completions]\n")
    spec = tmp_path / "study.yaml"
    spec.write_text(yaml.safe_dump({**world, "measure": {**world["measure"], "reward": "my_reward:sweet"}}))
    before = prepare(load_spec(spec))
    assert set(before.identity["data"]["rewards"]) == {"proxy"}
    (tmp_path / "my_reward.py").write_text("def sweet(prompts, completions):\n    return [2.0 for _ in completions]\n")
    after = prepare(load_spec(spec))
    assert not set(before.runs) & set(after.runs)
    [line] = differences(before.identity["data"], after.identity["data"], "content of data")
    assert line.startswith("content of data.rewards.proxy was")
    assert "rewards" not in prepare(parse_spec(POCKET)).identity["data"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr_scheduler_type": "foo"}, "algorithm dpo: .*foo"),
        ({"batch_size": 7, "micro_batch_size": 2}, "must be a multiple of micro_batch_size"),
        ({"hub_token": "secret"}, "hub_token cannot be set"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_anything_is_written(
    world: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        prepare(parse_spec({**world, "algorithm": {**world["algorithm"], **change}}))


def test_a_reset_that_would_never_come_is_refused(world: dict[str, Any]) -> None:
    steps = prepare(parse_spec(world)).steps
    methods = [{"elastic_reset": {"decay": 0.5, "reset_every": steps}}]
    with pytest.raises(Unsupported, match="would never reset"):
        prepare(parse_spec({**world, "methods": methods}))


def test_a_reset_by_what_is_not_measured_is_refused(world: dict[str, Any]) -> None:
    reset = {"elastic_reset": {"decay": 0.9, "reset_when": {"general_forward_kl": 0.1}}}
    with pytest.raises(
        Unsupported, match=r"goes by general_forward_kl, which .* \(in a study measure.general_prompts\)"
    ):
        prepare(parse_spec({**world, "methods": [reset]}))


def test_two_methods_that_replace_the_policy_are_refused(world: dict[str, Any]) -> None:
    steps = prepare(parse_spec(world)).steps
    resets = {"reset_every": steps // 2}
    methods = [[{"elastic_reset": {"decay": 0.5, **resets}}, {"reset_to_initial": resets}]]
    with pytest.raises(Unsupported, match="elastic_reset and reset_to_initial both replace the policy"):
        prepare(parse_spec({**world, "methods": methods}))
