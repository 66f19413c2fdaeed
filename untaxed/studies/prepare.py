"""From a spec to a task: models, data and measures, made or found in the cache.

1. The prompts, divided by hash into train, validation and test; the rewards and the suite; what only some methods
   read. They cost little, and what is wrong with them shows before anything long begins.
2. The models: a path, a hub id, the embedded world, or a recipe (see `studies.recipes`).
3. The preference pairs: read, or sampled from `initial` and ranked by the proxy reward (see `studies.pairs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SpecError
from ..measuring.contest_spec import ByEndpoint
from ..measuring.suite import SPLITS
from ..measuring.suite_spec import SuiteSpec, build_judges, build_rewards, build_suite
from ..training.algorithms import algorithm
from ..training.task import Task
from .inputs import read_inputs
from .pairs import preference_pairs, prompts_by_split
from .recipes import prepare_models
from .sources import Preferences

if TYPE_CHECKING:
    from .spec import StudySpec


def build_task(spec: StudySpec, cache: Path) -> Task:
    """Makes everything that the arms of a study share.

    Args:
        spec: The study.
        cache: Where prepared models and samples are kept; see `untaxed.studies.cache.default_cache`.

    Raises:
        SpecError: The spec lacks something that its algorithm or its measures need.
        UsageError: Models or rows that cannot be used, in one line.
    """
    if spec.models.pocket:
        from .. import pocket

        return pocket.WORLDS[str(spec.models.initial)].task()
    assert isinstance(spec.measure, SuiteSpec)  # only the embedded world has another
    if spec.data.prompts is None:
        raise SpecError("data.prompts is required: rewards and drift are measured on what models write after them")
    prompts = prompts_by_split(spec.data.prompts)
    here = Path.cwd()  # a spec read from a file has absolute paths already
    _no_endpoint(spec.measure)
    rewards = build_rewards(spec.measure, directory=here)
    suite = build_suite(
        spec.measure,
        prompts={split: prompts[split] for split in SPLITS},
        rewards=rewards,
        judges=build_judges(spec.measure, directory=here, cache=cache / "judged"),
        directory=here,
    )
    learns = _preferences_needed(spec)
    inputs = read_inputs(spec.data)
    initial, pretrained = prepare_models(spec.models, cache)
    return Task(
        initial=initial,
        suite=suite,
        pretrained=pretrained,
        preferences=preference_pairs(learns, prompts["train"], rewards["proxy"], initial, cache) if learns else (),
        prompts=prompts["train"],
        reward=rewards["proxy"],
        **inputs,
    )


def _no_endpoint(measure: SuiteSpec) -> None:
    """A study would ask at every measurement of every run, so that what it costs is nobody's decision."""
    if asked := [name for name, entry in measure.win_rates.items() if isinstance(entry, ByEndpoint)]:
        raise SpecError(
            f"measure.win_rates.{asked[0]}: a study asks no endpoint, which would be paid for at every measurement; "
            "leave it out, and give the study's weights to `untaxed measure` with a suite that has it"
        )


def _preferences_needed(spec: StudySpec) -> Preferences | None:
    """The source of the pairs that the algorithm learns from; None where it learns from none."""
    if spec.algorithm is None or algorithm(spec.algorithm.name).on_policy:
        return None
    if spec.data.preferences is None:
        raise SpecError(f"data.preferences is required: {spec.algorithm.name} learns from pairs")
    return spec.data.preferences
