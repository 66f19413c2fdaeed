"""Win rates and held-out preference pairs as written in a suite, and how they become measures.

win_rates:
  by_reward: {reward: {reward_model: models/other}}
  by_model: {causal_lm: models/judge}
  by_endpoint: {judge: {endpoint: "https://host/v1", model: NAME, key_env: JUDGE_KEY}}
preferences: {held_out: {rows: {path: pairs.jsonl}, beta: 0.1}}
length_controlled: true
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..rows import Row, RowsSource
from .endpoint import Endpoint, check_url
from .endpoint_judge import EndpointJudge, Price
from .judges import LanguageModelJudge
from .preferences import Pair, implicit_rewards
from .reward_spec import Source, Spec, build_reward, check_source, kind_of, model_directory, source_path
from .rewards import Rated, mean_reward
from .suite import SPLITS, Measure, Reward
from .suite_items import rows_by_split
from .win_rates import (
    Contest,
    Judge,
    reward_at_equal_length,
    reward_judge,
    win_rate,
    win_rate_at_equal_length,
)


class ByReward(Spec):
    """``{reward: …}``: the answer of higher reward wins."""

    reward: Source

    _named = field_validator("reward")(check_source)


class ByModel(Spec):
    """``{causal_lm: PATH}``: a language model says which answer is better.

    Attributes:
        causal_lm: Its folder or hub id.
        chat: Whether the question is put by its chat template.
    """

    causal_lm: str
    chat: bool = False


class PriceSpec(Spec):
    """Of a million tokens, read (`input`) and written (`output`)."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)


class EndpointSpec(Spec):
    """An OpenAI-compatible endpoint.

    Attributes:
        endpoint: As ``https://host/v1``.
        model: The judge's name there.
        key_env: The environment variable that holds the key.
        price: For an estimate of what the requests cost.
        parallel: Requests on their way at once.
        timeout_s: Of one request.
        tries: At most so many requests a question, with growing waits between them.
        parameters: Further fields of the request; given ones replace the defaults.
    """

    endpoint: str
    model: str = Field(min_length=1)
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*$")
    price: PriceSpec | None = None
    parallel: int = Field(default=4, ge=1, le=64)
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    tries: int = Field(default=6, ge=1, le=20)
    parameters: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0, "max_tokens": 16})

    @model_validator(mode="after")
    def _a_server(self) -> EndpointSpec:
        check_url(self.endpoint, has_key=self.key_env is not None)
        return self


class ByEndpoint(Spec):
    """``{judge: …}``: an endpoint says which answer is better."""

    judge: EndpointSpec


WAYS = {"reward": "ByReward", "causal_lm": "ByModel", "judge": "ByEndpoint"}
EXPECTED = f"expected one of {', '.join(f'`{name}: …`' for name in WAYS)}"
WinRate = Annotated[
    Annotated[ByReward, Tag("ByReward")]
    | Annotated[ByModel, Tag("ByModel")]
    | Annotated[ByEndpoint, Tag("ByEndpoint")],
    Discriminator(kind_of(WAYS), custom_error_type="judge", custom_error_message=EXPECTED),
]


class PairsSpec(Spec):
    """Held-out pairs: rows with ``prompt``, ``chosen`` and ``rejected``, all texts.

    Attributes:
        rows: The pairs.
        beta: DPO's.
        limit: At most so many a split.
    """

    rows: RowsSource
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    limit: int | None = Field(default=None, ge=1)


def build_judge(name: str, entry: WinRate, *, directory: Path, cache: Path) -> Judge:
    """What compares two answers.

    Args:
        name: The win rate's, for messages.
        entry: Its spec.
        directory: Where relative paths start.
        cache: A folder for the answers of endpoints.
    """
    if isinstance(entry, ByReward):
        return reward_judge(Rated(name, build_reward(entry.reward, directory)).of)
    if isinstance(entry, ByModel):
        judge = LanguageModelJudge(model_directory(entry.causal_lm, directory), entry.chat)
        judge.check()
        return judge
    given = entry.judge
    parameters = given.parameters
    endpoint = Endpoint(given.endpoint, given.model, given.key_env, given.timeout_s, given.tries, parameters)
    endpoint.check()
    price = None if given.price is None else Price(given.price.input, given.price.output)
    written = parameters.get("max_tokens") or parameters.get("max_completion_tokens") or 16
    return EndpointJudge(name, endpoint, cache, parallel=given.parallel, price=price, output_tokens=int(written))


def reward_measures(
    rewards: Mapping[str, Reward], judges: Mapping[str, Judge], *, length_controlled: bool
) -> Iterator[Measure]:
    """Rewards and win rates; after each, where asked, the same at equal length."""
    for rated in (Rated(name, fn) for name, fn in rewards.items()):
        yield mean_reward(rated)
        if length_controlled:
            yield reward_at_equal_length(rated)
    for contest in (Contest(name, judge) for name, judge in judges.items()):
        yield win_rate(contest)
        if length_controlled:
            yield win_rate_at_equal_length(contest)


def judge_path(entry: WinRate, directory: Path) -> Path | None:
    """The file or folder that a judge is read from; None where there is none."""
    if isinstance(entry, ByModel):
        return model_directory(entry.causal_lm, directory)
    return source_path(entry.reward, directory) if isinstance(entry, ByReward) else None


def pair_measures(name: str, spec: PairsSpec, directory: Path) -> tuple[Measure, ...]:
    """The implicit rewards of held-out pairs, divided by the hash of the prompt."""
    parts = rows_by_split(spec.rows, directory, _check_pair, "prompt", spec.limit)
    pairs = {split: [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in parts[split]] for split in SPLITS}
    return implicit_rewards(name, pairs, beta=spec.beta)


def _check_pair(row: Row) -> None:
    for column in ("prompt", "chosen", "rejected"):
        if not isinstance(row.get(column), str) or not row[column].strip():
            what = f"{row[column]!r:.40}" if column in row else "missing"
            raise ValueError(f"expected a text in the field {column!r}, it is {what}")
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen equals rejected, so that neither is preferred; leave the row out")
