"""A suite file: what is measured, with the prompts that texts are sampled from, and what each measure depends on.

prompts: {path: prompts.jsonl}
reward: vader
abilities: {select: [{name: piqa, kind: multiple_choice, rows: {path: piqa.jsonl}}]}
drift: [forward_kl]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ..checkpoints import fingerprint
from ..errors import SpecError
from ..measuring.contest_spec import PairsSpec
from ..measuring.endpoint_judge import EndpointJudge
from ..measuring.preferences import pair_names
from ..measuring.suite import GENERAL, SPLITS, Measure, Suite
from ..measuring.suite_spec import (
    DRIFT,
    AbilitiesSpec,
    PerplexitySpec,
    RewardSpec,
    SuiteSpec,
    build_judges,
    build_rewards,
    build_suite,
    reward_files,
)
from ..measuring.win_rates import AT_EQUAL_LENGTH
from ..strict_yaml import apply_sets, read_yaml
from ..studies.bench import local_files
from ..studies.cache import content_key, default_cache, digest, file_digest
from ..studies.pairs import prompts_by_split
from ..studies.places import located
from ..studies.sources import WORLDS, Prompts
from ..validation import validated

if TYPE_CHECKING:
    from .saved import SavedReading


class SuiteFile(SuiteSpec):
    """What `untaxed measure` reads: a study's `measure:` section, with its prompts.

    Attributes:
        prompts: What rewards and drift are sampled from; needed where they are measured.
        reward: The rewards, if any.
        abilities: The tasks, if any.
    """

    prompts: Prompts | None = None
    reward: RewardSpec | None = None  # type: ignore[assignment]  # a study cannot do without one
    abilities: AbilitiesSpec = Field(default_factory=lambda: AbilitiesSpec.model_construct(select=[], report=[]))

    @model_validator(mode="before")
    @classmethod
    def _drift_of_what_is_sampled(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "drift" not in value:
            names = {"prompts": "forward_kl", "general_prompts": "general_forward_kl"}
            return {**value, "drift": [name for key, name in names.items() if key in value]}
        return value

    @model_validator(mode="after")
    def _measures_something(self) -> SuiteFile:
        measured = (self.reward, self.win_rates, self.preferences, self.abilities.select, self.drift)
        if not any(measured):
            raise ValueError("nothing is measured; give `abilities`, `reward`, `win_rates`, `preferences` or `drift`")
        sampled = [one for one in self.drift if isinstance(one, str) and not one.startswith(GENERAL)]
        if self.prompts is None and (self.reward is not None or self.win_rates or sampled):
            what = "the reward" if self.reward is not None else [*self.win_rates, *sampled][0]
            raise ValueError(f"`prompts` is required: {what} is measured on what models write after them")
        return self


PATHS = ("path", "include", "reward_model", "causal_lm")


@dataclass(frozen=True)
class Loaded:
    """A suite ready to be measured.

    Attributes:
        suite: The measures.
        contents: By a measure's key, a hash of everything but the models that its scores depend on.
        described: The suite as plain values, for files.
        paid: The judges whose answers may cost something.
        source: The file it is from, or the embedded world's name.
        sets: What was changed of it, as ``key=value``.
        chat: Whether an ability is asked in the models' chat template.
    """

    suite: Suite
    contents: Mapping[str, str]
    described: Any
    paid: tuple[EndpointJudge, ...] = ()
    source: str = ""
    sets: tuple[str, ...] = ()
    chat: bool = False

    def forecasts(self, models: int) -> list[str]:
        """What may be asked of endpoints at most, a line each."""
        prompts = [prompt for split in self.suite.prompts.values() for prompt in split]
        new = self.suite.sampling.max_new_tokens
        return [judge.forecast(prompts, new_tokens=new, models=models) for judge in self.paid]

    def read_saved(self, folder: Path, keys: Sequence[str]) -> SavedReading:
        """Begins to read the model that lies in ``folder/policy``, in a process of its own."""
        from .saved import SavedReading

        return SavedReading(self, folder, keys)


def load_suite(path: str | Path, sets: Iterable[str] = ()) -> Loaded:
    """Reads a suite file; ``pocket`` and ``pocket_safety`` are the embedded worlds'.

    Raises:
        SpecError: A key is unknown or has a wrong value.
        DataError: Rows cannot be read or used.
    """
    path, sets = Path(path), tuple(sets)
    if str(path) in WORLDS and sets:
        raise SpecError(f"--set {sets[0]}: {path} is the embedded world's suite, which has no keys; give a suite file")
    if str(path) in WORLDS:
        return _embedded(str(path))
    raw = located({"measure": apply_sets(read_yaml(path), sets)}, path.parent)["measure"]
    built = _built(validated(SuiteFile, raw, f"{path}: ", what="a suite"), path.parent)
    return replace(built, source=str(path.absolute()), sets=sets)


def _built(spec: SuiteFile, directory: Path) -> Loaded:
    prompts = prompts_by_split(spec.prompts) if spec.prompts else {}
    rewards = build_rewards(spec, directory=directory) if spec.reward else {}
    judges = build_judges(spec, directory=directory, cache=default_cache() / "judged")
    by_split = {split: prompts[split] for split in SPLITS if split in prompts}
    suite = build_suite(spec, prompts=by_split, rewards=rewards, judges=judges, directory=directory)
    described = spec.model_dump(mode="json", exclude_none=True)
    paid = tuple(judge for judge in judges.values() if isinstance(judge, EndpointJudge))
    asked = [one.chat for one in (*spec.abilities.select, *spec.abilities.report)]
    chat = any(spec.abilities.chat if own is None else own for own in asked)
    return Loaded(suite, _contents(spec, suite, directory), described, paid, chat=chat)


def _embedded(name: str) -> Loaded:
    from .. import pocket

    world = pocket.WORLDS[name]
    suite, models = world.suite(), [fingerprint(path) for path in (world.initial_path(), world.proxy_path())]
    return Loaded(suite, {one.key: content_key(one.key, models) for one in suite.measures}, name, source=name)


def _contents(spec: SuiteFile, suite: Suite, directory: Path) -> dict[str, str]:
    """Each measure's own part of the spec with its files, and for what is sampled prompts and sampling, too."""
    drawn = suite.sampling
    sampling = [drawn.max_new_tokens, drawn.temperature, drawn.seed]
    read_from = {name: digest(path) for name, path in reward_files(spec, directory).items()}
    return {
        one.key: content_key(
            one.key,
            [
                _part(spec, one),
                [*sampling, suite.sampled(one.prompts)] if _is_sampled(spec, one) else None,
                read_from.get(_base(one.name)) if one.group == "reward" else None,
                one.content,
            ],
        )
        for one in suite.measures
    }


def _is_sampled(spec: SuiteFile, one: Measure) -> bool:
    if one.group == "reward":
        return _pairs(spec, one) is None
    return one.group == "drift" and one.name in DRIFT


def _base(name: str) -> str:
    """The reward or win rate that a measure is of."""
    return name.removesuffix(AT_EQUAL_LENGTH)


def _pairs(spec: SuiteFile, one: Measure) -> PairsSpec | None:
    """The preference pairs that a measure is of."""
    return next((pairs for name, pairs in spec.preferences.items() if one.name in pair_names(name)), None)


def _part(spec: SuiteFile, one: Measure) -> Any:
    """A measure's entry as plain values, and the contents of the files that it names."""
    if one.group == "reward":
        rewards: Any = spec.reward.entries() if spec.reward else {}
        entry: Any = _pairs(spec, one) or {**rewards, **spec.win_rates}[_base(one.name)]
    elif one.group == "abilities":
        entry = next(each for each in (*spec.abilities.select, *spec.abilities.report) if each.name == one.name)
    else:
        texts = (each for each in spec.drift if isinstance(each, PerplexitySpec))
        entry = next((each for each in texts if each.perplexity.name == one.name), one.name)
    if isinstance(entry, str):
        return entry
    whole = [_without_paths(entry.model_dump(mode="json")), sorted(map(file_digest, local_files(entry)))]
    return [*whole, "chat"] if one.group == "abilities" and spec.abilities.chat else whole


def _without_paths(plain: Any) -> Any:
    """What lies elsewhere with the same content is the same."""
    if not isinstance(plain, dict):
        return plain
    return {key: _without_paths(value) for key, value in plain.items() if key not in PATHS}
