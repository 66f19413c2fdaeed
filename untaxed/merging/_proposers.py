"""Who says which ratios to try next: chance, CMA-ES, or a model of what was seen.

All are functions of a seed and of the values told so far, so that a search that is started again proposes what it
proposed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from ._goals import Front, Goal, front
from ._simplex import Array, project, random_ratios

Algorithm = Literal["model", "cmaes", "random"]
RANDOM_FIRST = 4  # random ratios a dimension before the model is believed
NEAREST = (0.1, 0.03, 0.01)  # how far from all that was seen the model's next must be, in turn


class Space:
    """The ratios that are allowed, as a box or as the flat piece of it that has the asked mean."""

    def __init__(self, weights: tuple[float, ...], share: float | None) -> None:
        self.weights, self.share, self.blocks = weights, share, len(weights)
        w = np.array(weights) / sum(weights)
        self.basis = np.eye(self.blocks) if share is None else np.linalg.svd(w[None])[2][1:].T  # (blocks, dimensions)
        self.dimensions = self.basis.shape[1]
        self.origin = np.full(self.blocks, 0.5 if share is None else share)
        self.single = self.dimensions == 0 or share in (0, 1)  # one point is all there is
        drawn = [self.draw(np.random.default_rng(seed)) for seed in range(0 if self.single else 200)]
        self.spread = float(np.std([self.encode(x) for x in drawn], axis=0).mean()) if drawn else 0.0  # by coordinate

    def decode(self, z: Array) -> Array:
        return self.nearest(self.origin + self.basis @ z)

    def encode(self, ratios: Array) -> Array:
        return self.basis.T @ (ratios - self.origin)

    def nearest(self, ratios: Array) -> Array:
        if self.share is None:
            return np.clip(ratios, 0.0, 1.0)
        return project(ratios, self.share, weights=self.weights)

    def draw(self, generator: np.random.Generator) -> Array:
        return random_ratios(generator, self.share, blocks=self.blocks, weights=self.weights)

    def even(self) -> list[Array]:
        """Plain averaging: at the asked mean, or from aligned to initial in five steps."""
        shares = [self.share] if self.share is not None else [0.0, 0.25, 0.5, 0.75, 1.0]
        return [np.full(self.blocks, share) for share in shares]


class Proposer(Protocol):
    learns_from_all: bool  # also from ratios that it did not propose
    looks_back: bool  # at what was seen before

    def ask(self) -> list[Array]:
        """The next ratios to try."""

    def tell(self, ratios: list[Array], values: Array, seen: Array) -> None:
        """What they came to, ``(n, 2)``, and everything that was seen before them."""


class Chance:
    """Evenly drawn ratios, for comparison."""

    learns_from_all = looks_back = False

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.generator = space, np.random.default_rng(seed)

    def ask(self) -> list[Array]:
        return [self.space.draw(self.generator)]

    def tell(self, ratios: list[Array], values: Array, seen: Array) -> None:
        pass


class CMAES:
    """CMA-ES, told candidates by their rank: those beyond the goal's limit last; for a front, two that take turns.

    A front's candidates are ranked by how much each would add to the area of all that was seen before its generation,
    and where it adds nothing, by how far it lies behind. Ratios outside what is allowed are replaced by the nearest
    inside, and told as such.

    Source: Hansen and Ostermeier 2001, as implemented in `cmaes`; the ranks of a front after the uncrowded hypervolume
    improvement of Toure et al. 2019, arXiv:1904.08823.
    Differs: against all that was seen, not against the means of the other CMA-ES.
    """

    learns_from_all, looks_back = False, True

    def __init__(self, space: Space, goal: Goal, seed: int) -> None:
        from cmaes import CMA

        self.space, self.goal, self.turn = space, goal, 0
        starts = self._starts(seed) if isinstance(goal, Front) else [np.zeros(space.dimensions)]
        self.inner = [CMA(mean=mean, sigma=space.spread, seed=seed + k) for k, mean in enumerate(starts)]

    def _starts(self, seed: int) -> list[Array]:
        """One near aligned and one near initial; where the mean is given, two at random."""
        generator = np.random.default_rng(seed)
        even = [np.full(self.space.blocks, share) for share in (0.25, 0.75)]
        return [self.space.encode(x if self.space.share is None else self.space.draw(generator)) for x in even]

    def ask(self) -> list[Array]:
        inner = self.inner[self.turn]
        return [self.space.decode(inner.ask()) for _ in range(inner.population_size)]

    def tell(self, ratios: list[Array], values: Array, seen: Array) -> None:
        order = self.goal.order(values, seen)
        told = [(self.space.encode(ratios[index]), float(rank)) for rank, index in enumerate(order)]
        self.inner[self.turn].tell(told)
        self.turn = (self.turn + 1) % len(self.inner)


class Modelled:
    """Tries next what a smooth model of all that was seen believes best.

    The model interpolates reward and tax by cubic radial basis functions with a linear tail, a little smoothed. Of many
    random ratios, and of many near the best so far, the one that the goal puts first is tried, at a distance from all
    that was seen, which shrinks in turns.

    Source: after Regis and Shoemaker 2007 (stochastic RBF), doi:10.1287/ijoc.1060.0182.
    Differs: goal and front are ordered as `Goal.order` says; no weights between value and distance.
    """

    SMOOTHING = 1e-3
    learns_from_all, looks_back = True, False

    def __init__(self, space: Space, goal: Goal, seed: int) -> None:
        self.space, self.goal, self.generator = space, goal, np.random.default_rng(seed)
        self.ratios = np.empty((0, space.blocks))
        self.values = np.empty((0, 2))

    def ask(self) -> list[Array]:
        known = np.isfinite(self.values).all(axis=1)
        if known.sum() < RANDOM_FIRST * self.space.dimensions:
            return [self.space.draw(self.generator)]
        candidates = self._candidates()
        gaps = np.linalg.norm(candidates[:, None] - self.ratios[None], axis=-1).min(axis=1)
        least = NEAREST[len(self.ratios) % len(NEAREST)] * self.space.spread / 0.289  # that of a unit box
        candidates = candidates[gaps >= min(least, gaps.max())]
        predicted = self._model(self.ratios[known], self.values[known])(candidates)
        return [candidates[self.goal.order(predicted, self.values[known])[0]]]

    def tell(self, ratios: list[Array], values: Array, seen: Array) -> None:
        self.ratios = np.concatenate([self.ratios, np.stack(ratios)])
        self.values = np.concatenate([self.values, values])

    def _candidates(self) -> Array:
        drawn = [self.space.draw(self.generator) for _ in range(30)]
        around = self._best()[self.generator.integers(len(self._best()), size=300)]
        sizes = self.generator.choice([0.03, 0.1, 0.3], size=(300, 1)) * self.space.spread
        steps = sizes * self.generator.standard_normal((300, self.space.dimensions))
        return np.stack(drawn + [self.space.nearest(row) for row in around + steps @ self.space.basis.T])

    def _best(self) -> Array:
        """What to look around: the front, or the five that come first."""
        if isinstance(self.goal, Front):
            return self.ratios[front(self.values)]
        return self.ratios[self.goal.order(self.values, self.values[:0])[:5]]

    def _model(self, ratios: Array, values: Array) -> Callable[[Array], Array]:
        mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-12
        inside = np.stack([self.space.encode(row) for row in ratios])
        basis = np.linalg.norm(inside[:, None] - inside[None], axis=-1) ** 3 + self.SMOOTHING * np.eye(len(inside))
        tail = np.concatenate([np.ones((len(inside), 1)), inside], axis=1)
        corner = np.zeros((tail.shape[1], tail.shape[1]))
        targets = np.concatenate([(values - mean) / scale, np.zeros((tail.shape[1], 2))])
        solved = np.linalg.lstsq(np.block([[basis, tail], [tail.T, corner]]), targets, rcond=None)[0]

        def predict(asked: Array) -> Array:
            at = (asked - self.space.origin) @ self.space.basis
            near = np.linalg.norm(at[:, None] - inside[None], axis=-1) ** 3
            return np.concatenate([near, np.ones((len(at), 1)), at], axis=1) @ solved * scale + mean

        return predict


def proposer(algorithm: Algorithm, space: Space, goal: Goal, seed: int) -> Proposer:
    made: dict[str, Callable[[], Any]] = {
        "model": lambda: Modelled(space, goal, seed),
        "cmaes": lambda: CMAES(space, goal, seed),
        "random": lambda: Chance(space, seed),
    }
    return made[algorithm]()
