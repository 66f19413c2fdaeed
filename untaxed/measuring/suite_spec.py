"""What is measured, as written in a study's ``measure:`` section or in a suite file, and how it becomes a `Suite`.

    reward: {proxy: vader, gold: {text_classifier: {rows: {path: reviews.jsonl.gz}}}}
    abilities:
      select: [piqa, {task: gsm8k, limit: 200}]                       # shipped tasks; see `untaxed.measuring.tasks`
      report:
        - {name: capitals, kind: exact_match, rows: {path: capitals.csv}, template: "The capital of {country} is"}
        - {lm_eval: truthfulqa_mc1, limit: 100}                       # any task of lm-evaluation-harness
    drift: [forward_kl, {perplexity: wikitext}, {perplexity: {name: mine, rows: {path: mine.txt}, limit: 100}}]
    general_prompts: {path: chats.jsonl}                              # for drift on them: general_forward_kl, …
    every: 20

Rows are divided into validation and test by a hash, so that the same row is in the same part everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from ..errors import DataError
from ..rows import Row, RowsSource, subset
from .ability_spec import AbilitySpec
from .contest_spec import PairsSpec, WinRate, build_judge, judge_path, pair_measures, reward_measures
from .drift import entropy, forward_kl, length, reverse_kl
from .lm_eval_tasks import LmEvalSpec, lm_eval_ability
from .perplexity import perplexity
from .reward_spec import Name, RewardSpec, build_reward, single_is_proxy, source_path, without_defaults
from .scorers import ability
from .side_effects import SIDE_EFFECTS, top_choice
from .suite import GENERAL, Measure, Reward, Sampling, Split, Suite
from .suite_items import field_of, rows_by_split
from .tasks import TextsSpec, expanded, expanded_texts
from .win_rates import Judge

ON_GENERAL: Mapping[str, Callable[..., Measure]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "entropy": entropy,
    "length": length,
    "top_choice": top_choice,
}
DRIFT: Mapping[str, Callable[[], Measure]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "entropy": entropy,
    "length": length,
    **SIDE_EFFECTS,
    **{GENERAL + name: partial(make, GENERAL + name, "general") for name, make in ON_GENERAL.items()},
}
Distance = Literal[
    "forward_kl", "reverse_kl", "entropy", "length", "top_choice", "distinct_1", "distinct_2", "repetition",
    "refusal", "empty", "other_script", "other_language",
    "general_forward_kl", "general_reverse_kl", "general_entropy", "general_length", "general_top_choice",
]  # fmt: skip


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _which(entry: Any) -> str:
    """Whether an ability is one of lm-evaluation-harness or of ours."""
    named = "lm_eval" in entry if isinstance(entry, Mapping) else isinstance(entry, LmEvalSpec)
    return "theirs" if named else "ours"  # no keys of theirs, which would be taken for a part of an error's path


AnyAbility = Annotated[
    Annotated[AbilitySpec, Tag("ours")] | Annotated[LmEvalSpec, Tag("theirs")],
    Discriminator(_which),
    BeforeValidator(lambda entry: expanded(entry, Path.cwd())),
]


class AbilitiesSpec(_Spec):
    """The abilities: a shipped task, a task file, ``{task: …, with settings}``, ``{lm_eval: …}``, or written out.

    Attributes:
        select: What choices may look at.
        report: What is shown and never chosen on.
        chat: Whether prompts are user's messages in the model's chat template, where an ability does not say.
    """

    select: list[AnyAbility] = Field(min_length=1)
    report: list[AnyAbility] = []
    chat: bool = False


class PerplexitySpec(_Spec):
    """``{perplexity: …}``: a task's name, ``{task: …, with settings}``, or written out."""

    perplexity: TextsSpec

    @field_validator("perplexity", mode="before")
    @classmethod
    def _task(cls, entry: Any) -> Any:
        return expanded_texts(entry, Path.cwd())


class SuiteSpec(_Spec):
    """Everything that is measured, and when.

    Attributes:
        reward: The rewards; a single one is the proxy.
        win_rates: How often answers are preferred to the initial model's, by who says so.
        preferences: Held-out pairs, for the implicit reward of DPO and its accuracy.
        length_controlled: Whether every reward and win rate is also shown at equal length.
        abilities: The tasks.
        drift: Distances from `initial`.
        general_prompts: Rows with ``prompt`` of what models are not aligned on, for the distances ``general_…``; halved
            by hash, equal prompts counted once.
        every: Steps between two measurements.
        samples: At most so many prompts a split are sampled from.
        max_new_tokens: Tokens a sample.
        temperature: Of sampling; 1 is the model's own distribution.
        batch_size: Samples drawn at once.
        seed: Of sampling.
    """

    reward: RewardSpec
    win_rates: dict[Name, WinRate] = Field(default_factory=dict)
    preferences: dict[Name, PairsSpec] = Field(default_factory=dict)
    length_controlled: bool = False
    abilities: AbilitiesSpec
    drift: list[Distance | PerplexitySpec] = ["forward_kl"]
    general_prompts: RowsSource | None = None
    every: int = Field(default=20, ge=1)
    samples: int | None = Field(default=256, ge=1)
    max_new_tokens: int = Field(default=24, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)

    _plain = without_defaults("win_rates", "preferences", "length_controlled", "general_prompts")
    _single = field_validator("reward", mode="before")(single_is_proxy)

    @model_validator(mode="after")
    def _names_differ(self) -> SuiteSpec:
        abilities = Counter(one.name for one in (*self.abilities.select, *self.abilities.report))
        drift = Counter(one if isinstance(one, str) else one.perplexity.name for one in self.drift)
        rewards = Counter([*(self.reward.entries() if self.reward else ()), *self.win_rates, *self.preferences])
        for group, names in (("reward", rewards), ("abilities", abilities), ("drift", drift)):
            for name, count in names.items():
                if count > 1:
                    raise ValueError(f"{group}: the name {name!r} stands {count} times; give each its own")
        return self

    @model_validator(mode="after")
    def _general_prompts_are_there_and_read(self) -> SuiteSpec:
        on_general = [one for one in self.drift if isinstance(one, str) and one.startswith(GENERAL)]
        if on_general and self.general_prompts is None:
            raise ValueError(f"drift: {on_general[0]} needs `general_prompts`, rows with a field `prompt`")
        if self.general_prompts is not None and not on_general:
            raise ValueError(
                "`general_prompts` is read by no entry of `drift`; add general_forward_kl there, or leave it out"
            )
        return self


def build_rewards(spec: SuiteSpec, *, directory: Path) -> dict[str, Reward]:
    """The rewards by name: ``proxy``, ``gold`` where the spec has one, and the others.

    Args:
        spec: The suite's spec.
        directory: Where the spec stands: modules and files there are found.
    """
    return {name: build_reward(entry, directory) for name, entry in spec.reward.entries().items()}


def build_judges(spec: SuiteSpec, *, directory: Path, cache: Path) -> dict[str, Judge]:
    """What decides the win rates, by name; answers of endpoints are kept in `cache`."""
    entries = spec.win_rates.items()
    return {name: build_judge(name, entry, directory=directory, cache=cache) for name, entry in entries}


def reward_files(spec: SuiteSpec, directory: Path) -> dict[str, Path]:
    """What rewards and judges are read from, by their names, so that one changed in place is noticed.

    The file of a function, the folder of a model.
    """
    rewards = {} if spec.reward is None else spec.reward.entries()
    files = {name: source_path(entry, directory) for name, entry in rewards.items()}
    files |= {name: judge_path(entry, directory) for name, entry in spec.win_rates.items()}
    return {name: file for name, file in files.items() if file is not None}


def build_suite(
    spec: SuiteSpec,
    *,
    prompts: Mapping[Split, Sequence[str]],
    rewards: Mapping[str, Reward],
    judges: Mapping[str, Judge] | None = None,
    directory: Path,
) -> Suite:
    """Reads the items and puts the suite together.

    Args:
        spec: What is measured.
        prompts: What rewards and drift sample from, by split; empty where nothing is sampled.
        rewards: From `build_rewards`.
        judges: From `build_judges`.
        directory: Where the spec stands: relative paths of rows start there.
    Raises:
        DataError: Rows cannot be read or used; file and row are named.
    """
    chat = spec.abilities.chat
    select = [_ability(one, directory, chat) for one in spec.abilities.select]
    report = [_ability(one, directory, chat) for one in spec.abilities.report]
    return Suite(
        measures=(
            *reward_measures(rewards, judges or {}, length_controlled=spec.length_controlled),
            *(one for name, pairs in spec.preferences.items() for one in pair_measures(name, pairs, directory)),
            *select,
            *report,
            *(DRIFT[one]() if isinstance(one, str) else _perplexity(one, directory) for one in spec.drift),
        ),
        select=tuple(one.name for one in select),
        report=tuple(one.name for one in report),
        prompts={split: _some(rows, spec.samples, split) for split, rows in prompts.items()},
        sampling=Sampling(spec.max_new_tokens, spec.temperature, spec.batch_size, spec.seed),
        general=_general(spec, directory),
    )


def _general(spec: SuiteSpec, directory: Path) -> dict[Split, tuple[str, ...]]:
    """The general prompts by split, each once; nothing where there are none."""
    if spec.general_prompts is None:
        return {}

    def check(row: Row) -> None:
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise ValueError("expected a text in the field 'prompt'; name the column by `columns: {prompt: …}`")

    parts = rows_by_split(spec.general_prompts, directory, check, "prompt", None)
    by_split = {split: list(dict.fromkeys(row["prompt"] for row in rows)) for split, rows in parts.items()}
    return {split: _some(prompts, spec.samples, split) for split, prompts in by_split.items()}


def _ability(spec: AbilitySpec | LmEvalSpec, directory: Path, chat: bool) -> Measure:
    if isinstance(spec, LmEvalSpec):
        return lm_eval_ability(spec, directory, chat=chat)
    return ability(spec, directory, chat=chat)


def _perplexity(spec: PerplexitySpec, directory: Path) -> Measure:
    def check(row: Row) -> None:
        if not str(field_of(row, "text")).strip():
            raise ValueError("the text is empty")

    texts = spec.perplexity
    parts = rows_by_split(texts.rows, directory, check, "text", texts.limit)
    by_split = {split: [str(row["text"]) for row in rows] for split, rows in parts.items()}
    return perplexity(texts.name, by_split, max_tokens=texts.max_tokens, unit=texts.unit)


def _some(prompts: Sequence[str], limit: int | None, split: Split) -> tuple[str, ...]:
    if not prompts:
        raise DataError(f"there are no {split} prompts to sample from")
    return tuple(row["prompt"] for row in subset([{"prompt": prompt} for prompt in prompts], limit))
