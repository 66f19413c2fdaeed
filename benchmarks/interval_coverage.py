"""How often every interval that untaxed prints holds the truth, by simulation: worlds whose truth is known.

    python benchmarks/interval_coverage.py [--worlds N]      # prints the tables in Markdown

A world is a study: one initial model, plain and one remedy aligned at n seeds, 100 items with a difficulty of their
own that all models share (or exact: no item noise at all). Each seed pays a tax of its own, around the same mean with
normal or skewed spread (gamma of shape 2, skewness 1.4), and gains a reward of its own. The truth is the mean over all
seeds and items that could have been drawn. What is drawn is handed to the functions that make the report's intervals,
and to what they could have been instead: marked *, each shows why they are as they are.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np

from untaxed.frontier import area, retained
from untaxed.measuring.paired import paired_difference
from untaxed.measuring.quantiles import t_quantile
from untaxed.measuring.statistics import (
    FEWEST_SEEDS,
    Array,
    Interval,
    draws,
    fieller,
    item_covariance,
    item_weights,
    seed_covariance,
    student,
    with_spread,
)

ITEMS, REPLICATES = 100, 200
INITIAL, CHANCE = 0.8, 0.25  # of the ability that the taxes are on
PLAIN, REMEDY = 0.30, 0.15  # mean taxes
SPREAD = 0.10  # standard deviation of plain's tax over seeds; the remedy's has half of its variance in common with it
GAINS = {"plain": 1.0, "middle": 0.6, "remedy": 0.97}
GAIN_SPREAD = 0.08
MIDDLE = 0.05  # mean tax of the setting with the middle gain
SHAPE = 2.0  # of the gamma: skewness 2 / sqrt(SHAPE)
SHARED = 0.7  # of an item's difficulty, what all models share
DRIFT = 0.4  # nats a token


@dataclass(frozen=True)
class Cell:
    """One kind of world; `spread` is how trainings differ: normal, skewed, or not at all (none)."""

    seeds: int
    noisy: bool
    spread: str

    @property
    def name(self) -> str:
        seeds = f"{self.seeds} seed{'' if self.seeds == 1 else 's'}"
        return f"{seeds}, items {'noisy' if self.noisy else 'exact'}, {self.spread}"


SPREADS = ("normal", "skewed", "none")
CELLS = [Cell(n, noisy, spread) for noisy in (False, True) for spread in SPREADS[:2] for n in (3, 5, 10)]
ALONE = [Cell(n, True, spread) for spread in ("none", "normal") for n in (1, 2)]


class World:
    """What one study measured; every quantity as draws, (1 + replicates, seeds)."""

    def __init__(self, cell: Cell, generator: np.random.Generator) -> None:
        self.cell, self._generator = cell, generator
        noisy = cell.noisy
        self._weights = item_weights("coverage", ITEMS, REPLICATES) if noisy else np.full((1, ITEMS), 1 / ITEMS)
        own, other, third = self.spread(), self.spread(), self.spread()
        self.plain_tax = PLAIN + SPREAD * own
        self.remedy_tax = REMEDY + SPREAD * (own + other) / 2**1.5
        self.middle_tax = MIDDLE + SPREAD * third / 2
        self.gains = {name: mean + GAIN_SPREAD * self.spread() for name, mean in GAINS.items()}
        self._easy = generator.normal(size=ITEMS)
        self.initial = self._scores(INITIAL)

    def spread(self) -> Array:
        """One number a seed, of mean 0 and variance 1."""
        if self.cell.spread == "none":
            return np.zeros(self.cell.seeds)
        if self.cell.spread == "normal":
            return self._generator.normal(size=self.cell.seeds)
        return (self._generator.gamma(SHAPE, size=self.cell.seeds) - SHAPE) / math.sqrt(SHAPE)

    def _scores(self, level: float) -> Array:
        """(items, 1): right where what is hard, for all models and for this one, is below the level."""
        if not self.cell.noisy:
            return np.full((ITEMS, 1), level)
        hard = math.sqrt(SHARED) * self._easy + math.sqrt(1 - SHARED) * self._generator.normal(size=ITEMS)
        return (hard < NormalDist().inv_cdf(min(max(level, 1e-9), 1 - 1e-9))).astype(float)[:, None]

    def ability(self, taxes: Sequence[float]) -> list[Array]:
        return [self._scores(CHANCE + (INITIAL - CHANCE) * (1 - tax)) for tax in taxes]

    def tax(self, taxes: Sequence[float]) -> Array:
        found = draws("mean", [self.initial, *self.ability(taxes)], self._weights)
        return 1 - retained(found[:, 1:], found[:, :1], CHANCE)

    def gain(self, name: str) -> Array:
        noise = 0.5 * self.cell.noisy
        levels = [0.0, *self.gains[name]]
        scores = [level + noise * (self._easy + self._generator.normal(size=ITEMS)) for level in levels]
        found = draws("mean", [one[:, None] for one in scores], self._weights)
        return found[:, 1:] - found[:, :1]

    @cached_property
    def plain(self) -> Array:
        return self.tax(self.plain_tax)

    @cached_property
    def remedy(self) -> Array:
        return self.tax(self.remedy_tax)

    @cached_property
    def plain_gain(self) -> Array:
        return self.gain("plain")

    @cached_property
    def remedy_gain(self) -> Array:
        return self.gain("remedy")

    def drift(self) -> Array:
        """Nats a token: texts of different lengths, each with a drift of its own, and every seed too."""
        levels = DRIFT * (1 + 0.25 * self.spread())
        noisy = self.cell.noisy
        tokens = self._generator.integers(5, 60, ITEMS).astype(float) if noisy else np.full(ITEMS, 20.0)
        each = np.exp(0.5 * self._easy - 0.125) if noisy else np.ones(ITEMS)
        scores = [np.stack([level * each * tokens, tokens], axis=1) for level in levels]
        return draws("token_mean", scores, self._weights)

    @cached_property
    def under_the_area(self) -> tuple[Array, Array]:
        """Gains and retentions of two settings, (1 + replicates, seeds, 2)."""
        gains = np.stack([self.gain("middle"), self.remedy_gain], axis=-1)
        return gains, 1 - np.stack([self.tax(self.middle_tax), self.remedy], axis=-1)


def recovered(world: World) -> Interval:
    ratio = fieller(world.remedy, world.plain)
    if ratio.mean is None or ratio.low is None or ratio.high is None:
        return ratio
    return Interval(1 - ratio.mean, 1 - ratio.high, 1 - ratio.low, ratio.n)


def areas(world: World, seeds: Sequence[int]) -> Array:
    """Each seed's own area with the mean gain of plain's seeds as its yardstick."""
    gains, kept = world.under_the_area
    yardstick = world.plain_gain[:, seeds].mean(axis=1)[:, None, None]
    return area(gains[:, seeds] / yardstick, kept[:, seeds])


def area_shown(world: World) -> Interval:
    """As `untaxed.frontier` makes it: seeds are left out of yardstick and settings alike."""
    every = range(world.cell.seeds)
    if len(every) < FEWEST_SEEDS:
        return student(areas(world, every))
    without = [areas(world, [one for one in every if one != seed])[0].mean() for seed in every]
    return student(with_spread(areas(world, every).mean(axis=1), np.array(without)))


def one_quantile(quantity: Array) -> Interval:
    """Student's t on both kinds of noise together, as if the noise of items were known from n values too."""
    seeds, mean = quantity.shape[1], float(quantity[0].mean())
    variance = seed_covariance(quantity)[0, 0] + item_covariance(quantity)[0, 0]
    half = t_quantile(0.975, seeds - 1) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, seeds)


def percentiles(quantity: Array, generator: np.random.Generator) -> Interval:
    """The 2.5 and 97.5 percentiles over resampled seeds and items."""
    seeds = quantity.shape[1]
    chosen = generator.integers(seeds, size=(1000, seeds))
    rows = generator.integers(1, len(quantity), size=1000) if len(quantity) > 1 else np.zeros(1000, dtype=int)
    low, high = np.quantile(quantity[rows[:, None], chosen].mean(axis=1), [0.025, 0.975])
    return Interval(float(quantity[0].mean()), float(low), float(high), seeds)


def shown(world: World, generator: np.random.Generator) -> dict[str, Interval]:
    """Every kind of interval that is shown, and those marked * that are not."""
    scores, initial = world.ability(world.plain_tax), [world.initial]
    gain = world.plain_gain
    found = {"loss": paired_difference("mean", scores, initial * len(scores), key="coverage", replicates=200).interval}
    found |= {"tax": student(world.plain), "difference of taxes": student(world.plain - world.remedy)}
    found |= {"reward gain": student(gain), "drift": student(world.drift())}
    found |= {"recovered": recovered(world), "reward share": fieller(world.remedy_gain, gain)}
    found["area"] = area_shown(world)
    if world.cell.seeds >= FEWEST_SEEDS:
        found["* tax, one quantile"] = one_quantile(world.plain)
        found["* tax, percentiles"] = percentiles(world.plain, generator)
        found["* reward share, plain's gain as known"] = student(world.remedy_gain / gain.mean(axis=1, keepdims=True))
        found["* area, plain's gain as known"] = student(areas(world, range(world.cell.seeds)))
    return found


@cache
def truths(spread: str) -> dict[str, float]:
    """What each interval should hold; the area's, which cuts shares and retentions, from 200,000 seeds."""
    many = World(Cell(200_000, False, spread), np.random.default_rng(99))
    share = np.stack([many.gains["middle"], many.gains["remedy"]], axis=-1) / GAINS["plain"]
    kept = 1 - np.stack([many.middle_tax, many.remedy_tax], axis=-1)
    return {
        "loss": (INITIAL - CHANCE) * PLAIN,
        "tax": PLAIN,
        "difference of taxes": PLAIN - REMEDY,
        "reward gain": GAINS["plain"],
        "drift": DRIFT,
        "recovered": 1 - REMEDY / PLAIN,
        "reward share": GAINS["remedy"],
        "area": float(area(share, kept).mean()),
    }


def truth_of(kind: str, spread: str) -> float:
    return truths(spread)[kind.removeprefix("* ").split(",")[0]]


@dataclass
class Tally:
    """How often an interval was there, and held the truth; and how wide it was."""

    worlds: int = 0
    there: int = 0
    held: int = 0
    width: float = 0.0

    def add(self, interval: Interval, truth: float) -> None:
        self.worlds += 1
        if interval.low is not None and interval.high is not None:
            self.there += 1
            self.held += interval.low - 1e-9 <= truth <= interval.high + 1e-9
            self.width += interval.high - interval.low

    @property
    def coverage(self) -> float:
        return self.held / self.there if self.there else math.nan

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of the coverage."""
        return math.sqrt(self.coverage * (1 - self.coverage) / self.there) if self.there else math.nan


def coverage(cell: Cell, worlds: int, seed: int = 0) -> dict[str, Tally]:
    """The tally of every kind of interval in one kind of world."""
    generator, tallies = (
        np.random.default_rng([seed, cell.seeds, cell.noisy, SPREADS.index(cell.spread)]),
        defaultdict(Tally),
    )
    for _ in range(worlds):
        for kind, interval in shown(World(cell, generator), generator).items():
            tallies[kind].add(interval, truth_of(kind, cell.spread))
    return dict(tallies)


def bootstrap_alone(before: Array, after: Array) -> Interval:
    """The difference over items as its resamples show it: without flips that were not seen."""
    items = len(before)
    found = draws("mean", [before, after], item_weights("", items, REPLICATES))
    difference = found[:, 1] - found[:, 0]
    half = t_quantile(0.975, items - 1) * float(difference[1:].std(ddof=1)) * math.sqrt(items / (items - 1))
    return Interval(float(difference[0]), difference[0] - half, difference[0] + half, 1)


def near_the_edge(worlds: int, generator: np.random.Generator) -> list[str]:
    """Rows of the table of intervals over items alone, where only few items change."""
    rows = []
    for items in (30, 100, 400):
        for changes in (0.02, 0.05, 0.2):
            alone, shown_, changed = Tally(), Tally(), 0
            for _ in range(worlds):
                before = (generator.random((items, 1)) < INITIAL).astype(float)
                after = before * (generator.random((items, 1)) >= changes)
                found = paired_difference("mean", [after], [before], over="items", replicates=REPLICATES)
                alone.add(bootstrap_alone(after, before), INITIAL * changes)
                shown_.add(found.interval, INITIAL * changes)
                changed += found.changed
            rows.append(f"| {items} | {changed / worlds:.1f} | {alone.coverage:.3f} | {shown_.coverage:.3f} |")
    return rows


def mixtures(count: int, generator: np.random.Generator) -> list[str]:
    """Rows of the table of coverage where normal seeds and items err together, items r times as much as the seeds."""
    rows = []
    for seeds, ratio in itertools.product((3, 5, 10), (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)):
        error = generator.normal(size=count) * math.sqrt(1 + ratio)
        spread = generator.chisquare(seeds - 1, count) / (seeds - 1)
        noise = ratio * generator.chisquare(REPLICATES, count) / REPLICATES
        t, z = t_quantile(0.975, seeds - 1), NormalDist().inv_cdf(0.975)
        freedom = (spread + noise) ** 2 / (spread**2 / (seeds - 1) + noise**2 / (ITEMS - 1))
        welch = np.vectorize(lambda whole: t_quantile(0.975, int(whole)))(freedom.astype(int))
        squares = (t**2 * spread + z**2 * noise, t**2 * (spread + noise), welch**2 * (spread + noise))
        held = [f"{float((error**2 <= square).mean()):.3f}" for square in squares]
        rows.append(f"| {seeds} | {ratio:g} | " + " | ".join(held) + " |")
    return rows


def table(cells: Sequence[Cell], found: Sequence[dict[str, Tally]]) -> list[str]:
    """A row a kind of interval, a column a kind of world."""
    rows = ["| interval | " + " | ".join(cell.name for cell in cells) + " |", "|---|" + "--:|" * len(cells)]
    for kind in found[0]:
        tallies = [one[kind] for one in found]
        cells_of = [f"{one.coverage:.3f} (width {one.width / max(1, one.there):.2f}{_rare(one)})" for one in tallies]
        rows.append(f"| {kind} | " + " | ".join(cells_of) + " |")
    return rows


def _rare(tally: Tally) -> str:
    share = tally.there / tally.worlds
    return "" if share > 0.995 else f"; there in {share:.2f}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000)
    worlds = parser.parse_args().worlds
    began = time.process_time()
    for first in range(0, len(CELLS), 3):
        show(*table(CELLS[first : first + 3], [coverage(cell, worlds) for cell in CELLS[first : first + 3]]))
    show(*table(ALONE, [coverage(cell, worlds) for cell in ALONE]))
    head = "| items | changed, mean | bootstrap alone | one unseen flip each way |"
    show(head, "|--:|--:|--:|--:|", *near_the_edge(worlds, np.random.default_rng(7)))
    head = "| seeds | items over seeds | a quantile each | one quantile | Welch and Satterthwaite |"
    show(head, "|--:|--:|--:|--:|--:|", *mixtures(100_000, np.random.default_rng(8)))
    error = math.sqrt(0.95 * 0.05 / worlds)
    show(
        f"{worlds} worlds a cell, Monte-Carlo error {error:.4f} at 0.95; {time.process_time() - began:.0f} s of a core"
    )


def show(*lines: str) -> None:
    """Prints a table."""
    print("\n".join(lines), "\n", flush=True)


if __name__ == "__main__":
    main()
