"""An embedded world as the rest of the library uses it: where its models are, what is learned, what is measured."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from ..measuring.abilities import Item, exact_match
from ..measuring.drift import forward_kl, reverse_kl
from ..measuring.perplexity import perplexity
from ..measuring.rewards import reward
from ..measuring.suite import SPLITS, Measure, Reward, Sampling, Split, Suite
from ..training.task import Task
from . import documents, items, rehearsal
from .language import SplitName
from .rewards import ProxyReward

DATA = Path(__file__).parent / "data"
EVERY = 20  # steps between two measurements, unless a study says otherwise


@dataclass(frozen=True)
class World:
    """An alignment task over the pocket language. All worlds share words and `pretrained`.

    Attributes:
        name: What a study calls it.
        folder: Where its `initial`, its `proxy` and its preferences lie, below the shipped data.
        prompts: All prompts of a split.
        sampled: On how many of them rewards and drift are measured.
        max_new_tokens: Of a sample, its end among them.
        gold: The gold reward.
        select: Abilities that choices may look at.
        report: Abilities that are shown and never chosen on.
        chance: What guessing gets, where it is not 0.
        groups: The reference sets, and the select abilities that each is about.
        mixture: What `initial` was tuned on.
        arguments: Training arguments by algorithm, chosen on plain runs alone.
    """

    name: str
    folder: str
    prompts: Callable[[SplitName], list[str]]
    sampled: int
    max_new_tokens: int
    gold: Reward
    select: tuple[str, ...]
    report: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    mixture: documents.Mixture
    arguments: Mapping[str, Mapping[str, object]]
    chance: Mapping[str, float] = field(default_factory=dict)

    def pretrained_path(self) -> Path:
        """Directory of the model after pretraining on raw documents."""
        return _directory(DATA / "pretrained")

    def initial_path(self) -> Path:
        """Directory of the model that alignment starts from: `pretrained` after SFT."""
        return _directory(DATA / self.folder / "initial")

    def proxy_path(self) -> Path:
        """Directory of the proxy reward model."""
        return _directory(DATA / self.folder / "proxy")

    def preferences(self) -> list[dict[str, str]]:
        """Preference pairs: ``prompt``, ``chosen`` and ``rejected``, sampled from `initial`."""
        with gzip.open(DATA / self.folder / "preferences.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def suite(self, count: int = 1000) -> Suite:
        """What is measured.

        Args:
            count: Questions an ability and split, at most 1,000.
        """
        measures: list[Measure] = [reward("gold", self.gold), reward("proxy", self._proxy())]
        measures += [self._ability(name, count) for name in items.ABILITIES if name in (*self.select, *self.report)]
        measures += [forward_kl(), reverse_kl(), perplexity("perplexity", {split: _texts(split) for split in SPLITS})]
        prompts = {split: tuple(self.prompts(split)[: self.sampled]) for split in SPLITS}
        return Suite(tuple(measures), self.select, self.report, prompts, Sampling(self.max_new_tokens, batch_size=256))

    def task(self, count: int = 1000) -> Task:
        """The alignment task; `count` as in `suite`."""
        return Task(
            initial=self.initial_path(),
            pretrained=self.pretrained_path(),
            suite=self.suite(count),
            preferences=self.preferences(),
            prompts=self.prompts("train"),
            reward=self._proxy(),
            arguments=self.arguments,
            general_prompts=self.general_prompts(),
            reference_sets=self.reference_sets(),
            replay=self.replay(),
        )

    def general_prompts(self, count: int = 512, *, seed: int = 0) -> list[str]:
        """See `untaxed.pocket.rehearsal.general_prompts`."""
        return rehearsal.general_prompts(count, seed=seed, groups=self.groups)

    def reference_sets(self, count: int = 200, *, seed: int = 0) -> dict[str, list[dict[str, str]]]:
        """See `untaxed.pocket.rehearsal.reference_sets`."""
        return rehearsal.reference_sets(count, seed=seed, groups=self.groups)

    def replay(self, count: int = 512, *, seed: int = 0) -> list[str]:
        """See `untaxed.pocket.rehearsal.replay`."""
        return rehearsal.replay(count, seed=seed, mixture=self.mixture)

    def _proxy(self) -> ProxyReward:
        return ProxyReward(DATA / self.folder / "proxy")

    def _ability(self, name: str, count: int) -> Measure:
        asked = {split: [Item(*question) for question in items.questions(name, split, count)] for split in SPLITS}
        return exact_match(name, asked, chance=self.chance.get(name, 0.0))


def _directory(path: Path) -> Path:
    if not (path / "model.safetensors").is_file():
        raise CheckpointError(f"the pocket model {path} is missing; make it with: untaxed pocket build")
    return path


def _texts(split: Split, count: int = 200) -> Sequence[str]:
    """Raw documents from a seed of their own: what people wrote, as far as this world has people."""
    rng = random.Random(f"texts {split}")
    return [documents.raw(rng) for _ in range(count)]
