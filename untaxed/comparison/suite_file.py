"""A suite file: what is measured, with the prompts that texts are sampled from, and what each measure depends on.

prompts: {path: prompts.jsonl}
reward: vader
abilities: {select: [{name: piqa, kind: multiple_choice, rows: {path: piqa.jsonl}}]}
drift: [forward_kl]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ..checkpoints import fingerprint
from ..measuring.suite import SPLITS, Measure, Suite
from ..measuring.suite_spec import (
    DRIFT,
    AbilitiesSpec,
    PerplexitySpec,
    RewardSpec,
    SuiteSpec,
    build_rewards,
    build_suite,
    reward_files,
)
from ..strict_yaml import apply_sets, read_yaml
from ..studies.bench import local_files
from ..studies.cache import content_key, file_digest
from ..studies.pairs import prompts_by_split
from ..studies.places import located
from ..studies.sources import WORLDS, Prompts
from ..validation import validated


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
            return {**value, "drift": ["forward_kl"] if "prompts" in value else []}
        return value

    @model_validator(mode="after")
    def _measures_something(self) -> SuiteFile:
        if self.reward is None and not self.abilities.select and not self.drift:
            raise ValueError("nothing is measured; give `abilities`, `reward` or `drift`")
        sampled = [one for one in self.drift if isinstance(one, str)]
        if self.prompts is None and (self.reward is not None or sampled):
            what = "the reward" if self.reward is not None else sampled[0]
            raise ValueError(f"`prompts` is required: {what} is measured on what models write after them")
        return self


@dataclass(frozen=True)
class Loaded:
    """A suite ready to be measured.

    Attributes:
        suite: The measures.
        contents: By a measure's key, a hash of everything but the models that its scores depend on.
        described: The suite as plain values, for files.
    """

    suite: Suite
    contents: Mapping[str, str]
    described: Any


def load_suite(path: str | Path, sets: Iterable[str] = ()) -> Loaded:
    """Reads a suite file; ``pocket`` and ``pocket_safety`` are the embedded worlds'.

    Raises:
        SpecError: A key is unknown or has a wrong value.
        DataError: Rows cannot be read or used.
    """
    if str(path) in WORLDS:
        return _embedded(str(path))
    path = Path(path)
    raw = located({"measure": apply_sets(read_yaml(path), sets)}, path.parent)["measure"]
    return _built(validated(SuiteFile, raw, f"{path}: ", what="a suite"), path.parent)


def _built(spec: SuiteFile, directory: Path) -> Loaded:
    prompts = prompts_by_split(spec.prompts) if spec.prompts else {}
    rewards = build_rewards(spec, directory=directory) if spec.reward else {}
    by_split = {split: prompts[split] for split in SPLITS if split in prompts}
    suite = build_suite(spec, prompts=by_split, rewards=rewards, directory=directory)
    described = spec.model_dump(mode="json", exclude_none=True)
    return Loaded(suite, _contents(spec, suite, directory), described)


def _embedded(name: str) -> Loaded:
    from .. import pocket

    world = pocket.WORLDS[name]
    suite, models = world.suite(), [fingerprint(path) for path in (world.initial_path(), world.proxy_path())]
    return Loaded(suite, {one.key: content_key(one.key, models) for one in suite.measures}, name)


def _contents(spec: SuiteFile, suite: Suite, directory: Path) -> dict[str, str]:
    """Each measure's own part of the spec with its files, and for what is sampled prompts and sampling, too."""
    drawn = suite.sampling
    sampling = [drawn.max_new_tokens, drawn.temperature, drawn.seed, suite.prompts]
    rewards = reward_files(spec, directory) if spec.reward else {}
    return {
        one.key: content_key(
            one.key,
            [
                _part(spec, one),
                sampling if _is_sampled(one) else None,
                file_digest(rewards[one.name]) if one.group == "reward" and one.name in rewards else None,
            ],
        )
        for one in suite.measures
    }


def _is_sampled(one: Measure) -> bool:
    return one.group == "reward" or (one.group == "drift" and one.name in DRIFT)


def _part(spec: SuiteFile, one: Measure) -> Any:
    """A measure's entry as plain values, and the contents of the files that it names."""
    if one.group == "reward":
        entry: Any = getattr(spec.reward, one.name)
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
    return {key: _without_paths(value) for key, value in plain.items() if key != "path"}
