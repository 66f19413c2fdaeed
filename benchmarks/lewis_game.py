"""The Lewis game: what a speaker that learns by playing keeps of its language, with Elastic Reset and its controls.

    python benchmarks/lewis_game.py [--seeds 5] [--out DIR]       the chosen settings on seeds 0, 1, …; Markdown tables
    python benchmarks/lewis_game.py --tune [--seeds 3]            every setting of CANDIDATES on seeds 100, 101, …
    python benchmarks/lewis_game.py --game reinforce              the other way to learn; nothing is tuned for it

An object has 5 attributes of 5 values. A speaker names it by 5 words out of 25, a listener reads the values back, one
word at a time. Gold words exist: value v of attribute a is word 5 a + v. Both agents learn them from a few labelled
objects and then play on a few others, where only being understood counts. **Word accuracy** is the share of gold words
among the greedy words for objects never seen (drift is its loss), **task accuracy** the share of values understood.

All seeds learn side by side in one batch dimension, each with a random generator of its own, and every method starts
from the same agents and meets the same objects and noise. Run again, the same seeds give the same numbers.

Source: setting after the public Lewis-game code of Noukhovitch et al. 2023 (arXiv:2312.07551).
Differs: more labelled objects, an almost untaught listener, fewer steps: in the original numbers nothing drifts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from untaxed.callbacks import ElasticResetState, WeightAverage
from untaxed.measuring.statistics import student
from untaxed.weights import snapshot

VALUES, WORDS, HIDDEN = 5, 25, 200
OBJECTS = torch.cartesian_prod(*[torch.arange(VALUES)] * 5)  # (3125, 5)
GOLD = OBJECTS + VALUES * torch.arange(5)  # the gold word of every attribute
FEATURES = one_hot(GOLD, WORDS).sum(1).float()  # (3125, 25)

UPDATE_EVERY = 100  # optimizer steps between updates of an average
NEVER = 2**31


@dataclass(frozen=True)
class Game:
    """What all methods share."""

    algorithm: str  # gumbel (straight-through) or reinforce (running-mean baseline)
    learning_rate: float
    labelled: int = 100  # objects with gold words
    played: int = 30  # objects of the self-play
    validation: int = 500  # the rest is test
    speaker_steps: int = 200  # of pretraining, 5 labelled objects a step, Adam 1e-3
    listener_steps: int = 5
    steps: int = 10_000  # of self-play
    batch: int = 50
    temperature: float = 10.0
    points: int = 50  # of the curves


GAMES = {"gumbel": Game("gumbel", 1e-4), "reinforce": Game("reinforce", 3e-3)}
AVERAGES: list[dict[str, Any]] = [{"decay": decay} for decay in (0.995, 0.98, 0.9)]
RESETS = [{"decay": decay, "reset_every": 2000} for decay in (0.995, 0.98, 0.9)]
RESETS += [{"decay": decay, "reset_every": 1000} for decay in (0.995, 0.98)]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "kl": [{"beta": beta} for beta in (0.01, 0.1, 1.0, 3.0, 10.0)],
    "reset_to_initial": [{"reset_every": every} for every in (1000, 2000)],
    "reset_to_average": RESETS,
    "average_only": AVERAGES,
    "elastic_reset": RESETS,
}
# by --tune in the gumbel game: most gold words at the end, with at least 0.95 of plain's task accuracy
CHOSEN: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "kl": [{"beta": 3.0}],
    "reset_to_initial": [{"reset_every": 1000}],
    "reset_to_average": [{"decay": 0.995, "reset_every": 1000}],
    "average_only": [{"decay": 0.98}],
    "elastic_reset": [{"decay": 0.995, "reset_every": 1000}],
}


class TwoLayers(nn.Module):
    """Two linear layers with nothing between, one copy a seed: weights are (seeds, in, out)."""

    def __init__(self, generators: Sequence[Generator], inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()

        def uniform(rows: int, columns: int, fan_in: int) -> nn.Parameter:
            draws = [torch.rand(rows, columns, generator=generator) for generator in generators]
            return nn.Parameter((2 * torch.stack(draws) - 1) / math.sqrt(fan_in))

        self.first, self.second = uniform(inputs, HIDDEN, inputs), uniform(HIDDEN, outputs, HIDDEN)
        self.first_bias = uniform(1, HIDDEN, inputs) if bias else None
        self.second_bias = uniform(1, outputs, HIDDEN) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(seeds, batch, in) -> (seeds, batch, out); the layers are multiplied first, which is less work."""
        outputs = inputs @ (self.first @ self.second)
        if self.first_bias is None:
            return outputs
        return outputs + (self.first_bias @ self.second + self.second_bias)


class AverageBeside:
    """An average that is never reset; the speaker falls back to it every `reset_every` steps, or never."""

    def __init__(self, speaker: nn.Module, *, decay: float, reset_every: int = NEVER) -> None:
        self.average = WeightAverage(speaker, decay=decay)
        self._reset_every, self._steps = reset_every, 0

    def due(self) -> bool:
        return (self._steps + 1) % self._reset_every == 0

    def skip(self) -> None:
        self._steps += 1
        if self._steps % UPDATE_EVERY == 0:
            self.average.update()

    def step(self) -> bool:
        due = self.due()
        self.skip()
        if due:
            self.average.copy_to_model()
        return due


def between_steps(method: str, speaker: nn.Module, options: dict[str, Any]) -> ElasticResetState | AverageBeside:
    """What acts on the speaker after `optimizer.step()`; for plain and KL a reset that never comes."""
    if method in ("reset_to_average", "average_only"):
        return AverageBeside(speaker, **options)
    if method == "elastic_reset":
        return ElasticResetState(speaker, update_every=UPDATE_EVERY, **options)
    every = options.get("reset_every", NEVER)
    return ElasticResetState(speaker, decay=1.0, reset_every=every, update_every=every)


class Players:
    """Both agents and the objects of every seed: labelled, played, validation, test."""

    def __init__(self, game: Game, seeds: Sequence[int]) -> None:
        self.game, self.baseline = game, None
        self.generators = [Generator().manual_seed(seed) for seed in seeds]
        shuffled = torch.stack([torch.randperm(len(OBJECTS), generator=generator) for generator in self.generators])
        sizes = (game.labelled, game.played, game.validation)
        self.labelled, self.played, self.validation, self.test = shuffled.split((*sizes, len(OBJECTS) - sum(sizes)), 1)
        self.speaker = TwoLayers(self.generators, WORDS, 5 * WORDS, bias=True)
        self.listener = TwoLayers(self.generators, WORDS, VALUES, bias=False)
        self._teach(self.speaker, game.speaker_steps, lambda objects: (self.speak(objects), GOLD[objects]))
        self._teach(self.listener, game.listener_steps, lambda objects: (self.listen(GOLD[objects]), OBJECTS[objects]))
        self.initial = snapshot(self.speaker)

    def _teach(self, agent: nn.Module, steps: int, lesson: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        optimizer = torch.optim.Adam(agent.parameters(), 1e-3)
        for _ in range(steps):
            logits, answers = lesson(self.draw(self.labelled, 5))
            loss = cross_entropy(logits.flatten(0, 2), answers.flatten()) * len(self.generators)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def draw(self, objects: Tensor, number: int) -> Tensor:
        """(seeds, number) of the given objects, each seed with its own generator."""
        size = objects.shape[1]
        chosen = [torch.randint(size, (number,), generator=generator) for generator in self.generators]
        return objects.gather(1, torch.stack(chosen))

    def speak(self, objects: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Logits (seeds, batch, 5, words), from the speaker's own weights or from others."""
        features = FEATURES[objects]
        logits = self.speaker(features) if weights is None else functional_call(self.speaker, weights, (features,))
        return logits.unflatten(-1, (5, WORDS))

    def listen(self, words: Tensor) -> Tensor:
        """Logits (seeds, batch, 5, values) from words, as numbers or one-hot."""
        heard = words if words.is_floating_point() else one_hot(words, WORDS).float()
        return self.listener(heard.flatten(1, 2)).unflatten(1, heard.shape[1:3])

    def sample(self, logits: Tensor) -> Tensor:
        """One-hot words drawn by adding Gumbel noise; straight-through, they pass the gradient of a softmax."""
        draws = [torch.empty(logits.shape[1:]).exponential_(generator=generator) for generator in self.generators]
        noisy = logits - torch.stack(draws).log()
        words = one_hot(noisy.argmax(-1), WORDS).float()
        if self.game.algorithm == "reinforce":
            return words
        soft = (noisy / self.game.temperature).softmax(-1)
        return words + soft - soft.detach()

    def loss(self, beta: float) -> Tensor:
        """Of both agents on a new batch: minus the log-probability of the values, plus beta KL(speaker, initial)."""
        objects = self.draw(self.played, self.game.batch)
        logits = self.speak(objects)
        words, now = self.sample(logits), logits.log_softmax(-1)
        values = self.listen(words).log_softmax(-1).gather(-1, OBJECTS[objects].unsqueeze(-1))
        reward = values.sum((-2, -1))  # (seeds, batch)
        loss = -reward
        if self.game.algorithm == "reinforce":
            mean = reward.detach().mean(1, keepdim=True)
            past = mean if self.baseline is None else self.baseline
            self.baseline = 0.99 * past + 0.01 * mean
            loss = loss - (reward.detach() - past) * (words * now).sum((-2, -1))
        if beta:
            then = self.speak(objects, self.initial).log_softmax(-1)
            loss = loss + beta * (now.exp() * (now - then)).sum((-2, -1))
        return loss.mean(1).sum()  # over seeds a sum: none changes another's gradient

    @torch.no_grad()
    def measure(self, weights: dict[str, Tensor] | None) -> dict[str, list[float]]:
        """Word and task accuracy of greedy words on validation, test and played objects, a number a seed."""
        scores = {}
        for split in ("validation", "test", "played"):
            objects = getattr(self, split)
            words = self.speak(objects, weights).argmax(-1)
            understood = self.listen(words).argmax(-1) == OBJECTS[objects]
            for name, right in (("words", words == GOLD[objects]), ("task", understood)):
                scores[f"{name}_{split}"] = [round(x, 4) for x in right.float().mean((1, 2)).tolist()]
        return scores


def play(game: Game, method: str, options: dict[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Pretrains, plays, and returns the points of the curves; a reset step is measured before and after.

    A reset due at the last step is skipped, so that every run ends a whole cycle after its last reset.
    """
    players = Players(game, seeds)
    between = between_steps(method, players.speaker, options)
    weights = between.average.tensors() if method == "average_only" else None
    agents = [*players.speaker.parameters(), *players.listener.parameters()]
    optimizer = torch.optim.AdamW(agents, game.learning_rate, fused=True)
    points: list[dict[str, Any]] = []

    def note(step: int, phase: str | None) -> None:
        points.append({"step": step, "phase": phase, **players.measure(weights)})

    note(0, None)
    for step in range(1, game.steps + 1):
        optimizer.zero_grad()
        players.loss(options.get("beta", 0.0)).backward()
        optimizer.step()
        due, last = between.due(), step == game.steps
        if due:
            note(step, "before")
        between.skip() if last else between.step()
        if due and not last:
            note(step, "after")
        elif not due and step % (game.steps // game.points) == 0:
            note(step, None)
    return points


def curve(points: list[dict[str, Any]], key: str) -> np.ndarray:
    """(points, seeds)"""
    return np.array([point[key] for point in points])


def matched(points: list[dict[str, Any]], level: np.ndarray, best: bool) -> np.ndarray:
    """Test word accuracy of each seed at its first point with task accuracy >= level, or at its best one on validation.

    Returns:
        (seeds,); NaN for a seed that never gets there.
    """
    there = curve(points, "task_played") >= level
    value = np.where(there, curve(points, "words_validation") if best else 1.0, -1.0)
    found = curve(points, "words_test")[value.argmax(0), np.arange(len(level))]
    return np.where(there.any(0), found, np.nan)


def cell(values: np.ndarray) -> str:
    """The mean with Student's 95 % interval over the seeds that have a value."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return f"– ({len(known)} of {len(values)} seeds)"
    interval = student(known[None])
    text = f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    return text if len(known) == len(values) else f"{text}, {len(known)} of {len(values)} seeds"


def table(header: str, rows: list[list[str]]) -> str:
    rule = "|---" * (header.count("|") + 1) + "|"
    return "\n".join([f"| {header} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def named(run: dict[str, Any]) -> str:
    return " ".join([run["method"], *(f"{key} {value}" for key, value in run["options"].items())])


def report(runs: list[dict[str, Any]]) -> str:
    """Two tables: the end of training and the last reset before it, and word accuracy at matched task accuracy."""
    plain, elastic = (next(run["points"] for run in runs if run["method"] == one) for one in ("plain", "elastic_reset"))
    target = curve(plain, "task_played")[-1]
    end, at = [], []
    for run in runs:
        points = run["points"]
        words, played, test = (curve(points, key)[-1] for key in ("words_test", "task_played", "task_test"))
        gap = curve(elastic, "words_test")[-1] - words
        last = [point for point in points if point["phase"] == "after"][-1:]
        after = [cell(curve(last, key)[0]) if last else "" for key in ("words_test", "task_played")]
        end.append([named(run), *map(cell, (words, gap, played, test)), *after])
        found = [matched(points, q * target, best) for best in (False, True) for q in (0.9, 0.95)]
        at.append([named(run), *map(cell, found), cell(matched(elastic, 0.95 * target, True) - found[-1])])
    start = ", ".join(f"{key} {cell(curve(plain, key)[0])}" for key in ("words_test", "task_played", "task_test"))
    ends = (
        "at the end | words, test | Elastic Reset minus it | task, played | task, test | words after a reset* | task*"
    )
    ats = (
        "words, test | first at 0.9 | first at 0.95 | best at 0.9 | best at 0.95 | Elastic Reset minus it, best at 0.95"
    )
    return (
        f"Before play: {start}.\n\n{table(ends, end)}\n{table(ats, at)}\n* right after the last reset, played objects\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", choices=GAMES, default="gumbel")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings, first = (CANDIDATES, 100) if arguments.tune else (CHOSEN, 0)
    seeds, began = [*range(first, first + arguments.seeds)], time.process_time()
    runs = [
        {"method": method, "options": one, "seeds": seeds, "points": play(GAMES[arguments.game], method, one, seeds)}
        for method, candidates in settings.items()
        for one in candidates
    ]
    seconds = time.process_time() - began
    print(f"{report(runs)}\n{len(runs)} runs of {len(seeds)} seeds, {seconds:.0f} s of one core")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"{arguments.game}{'_tuning' if arguments.tune else ''}.json"
        (arguments.out / name).write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")


if __name__ == "__main__":
    main()
