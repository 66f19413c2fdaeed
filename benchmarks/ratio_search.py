"""How well ratios are found: `search_ratios` against ten times as many random ones, on made-up trade-offs.

    python benchmarks/ratio_search.py [--worlds 10]

A world says what reward and ability a triple (or six, nine) of ratios keeps: powers of each ratio with weights of their
own, and products of pairs. With `noise` both are rounded to 1/200, as an accuracy over 200 items is, after a normal
deviation of a hundredth that belongs to the ratios.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from untaxed.merging import Front, LeastTax, partition, search_ratios

GOAL = Front(reward_from=0.0, reward_to=1.0, tax_to=1.0)


def world(blocks: int, seed: int, noise: bool) -> Callable[[Mapping[str, float]], dict[str, float]]:
    generator = np.random.default_rng(seed)
    a, b = generator.dirichlet(np.ones(blocks), size=2)
    p, q = generator.uniform(1, 3, (2, blocks))
    c = generator.normal(size=(blocks, blocks)) * 0.1

    def evaluate(ratios: Mapping[str, float]) -> dict[str, float]:
        r = np.array([*ratios.values()])
        reward = 1 - (a * r**p).sum() - abs(r @ c @ r) / blocks
        ability = 0.6 + 0.4 * (b * (1 - (1 - r) ** q)).sum() - 0.1 * abs(r @ c.T @ (1 - r))
        if noise:
            own = np.random.default_rng(zlib.crc32(r.tobytes()))
            reward, ability = (round((x + 0.01 * own.standard_normal()) * 200) / 200 for x in (reward, ability))
        return {"reward": float(reward), "tax": float(1 - ability)}

    return evaluate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=10)
    worlds = parser.parse_args().worlds
    print("| blocks | mean | noise | goal | evaluations | algorithm | of 10 x random: mean | least | s a proposal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for blocks, share, noise in ((3, None, False), (3, None, True), (3, 0.4, False), (6, None, False), (9, 0.4, False)):
        for goal in (GOAL, LeastTax(reward_at_least=0.9 if share is None else 0.7)):
            compare(blocks, share, noise, goal, worlds)


def compare(blocks: int, share: float | None, noise: bool, goal: Front | LeastTax, worlds: int) -> None:
    cut = partition({f"h.{n}.w.weight": (2, 2) for n in range(blocks)}, blocks)
    count, mean = 60 if blocks == 3 else 120, {"initial_share": share}
    for algorithm in ("model", "cmaes", "random"):
        quality, took = [], 0.0
        for seed in range(worlds):
            seen, true = world(blocks, seed, noise), world(blocks, seed, False)
            began = time.perf_counter()
            found = search_ratios(
                seen, cut, goal, initial_share=share, evaluations=count, algorithm=algorithm, seed=seed
            )
            took += time.perf_counter() - began
            more = {"algorithm": "random", "evaluations": 10 * count, "seed": 100 + seed}
            many = search_ratios(seen, cut, goal, **more, **mean)
            quality.append(worth(found, goal, true) / worth(many, goal, true))
        name = "front" if isinstance(goal, Front) else "least tax"
        print(
            f"| {blocks} | {share} | {noise} | {name} | {count} | {algorithm} | {np.mean(quality):.4f} | "
            f"{np.min(quality):.4f} | {took / worlds / count:.3f} |",
            flush=True,
        )


def worth(found: object, goal: Front | LeastTax, true: Callable[[Mapping[str, float]], dict[str, float]]) -> float:
    """What was found, without the noise: the area of its front, or the ability kept by its best."""
    if isinstance(goal, Front):
        rows = [true(evaluation.ratios) for evaluation in found.front]
        return goal.area(np.array([[row["reward"], row["tax"]] for row in rows]))
    return 1 - true(found.ratios)["tax"] if found.best else 0.0


if __name__ == "__main__":
    main()
