"""How well ratios are found in the embedded world: `search_ratios` against ten times as many random ones.

    untaxed study studies/pocket_merging_dpo.yaml --out DIR
    python benchmarks/pocket_ratio_search.py DIR [--seeds 1] [--evaluations 60]

Each seed's last plain checkpoint of that study is averaged with `initial`, a layer a block, and each average is
measured as `hma_search` does it: proxy reward and tax on the select abilities, validation items. Both searches see
the same measurements, kept in DIR/ratio-search, so that a run that was broken off goes on. One search for the front
serves random search for both goals: what is drawn does not depend on the goal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from untaxed.checkpoints import load_model
from untaxed.merging import Front, LeastTax, blended, search_ratios
from untaxed.merging._cut import cut  # the row's own blocks
from untaxed.methods import build
from untaxed.studies.bench import prepare
from untaxed.studies.making import Judge
from untaxed.studies.spec import load_spec
from untaxed.studies.store import Store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--spec", type=Path, default=Path("studies/pocket_merging_dpo.yaml"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--evaluations", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench, store = prepare(load_spec(given.spec)), Store(given.directory.absolute())
    print("| seed | goal | evaluations | search | 10 x random | search / 10 x random |")
    print("|---|---|---|---|---|---|")
    for run in [run for run in bench.runs.values() if not run.training and run.member is None][: given.seeds]:
        compare(bench, store, run, given.evaluations)


def compare(bench: Any, store: Store, run: Any, evaluations: int) -> None:
    step = bench.steps
    weights = store.run(run.key) / "weights" / f"step-{step}"
    model, initial = load_model(weights), dict(load_model(bench.task.initial).named_parameters())
    aligned = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    judge, blocks = Judge(bench, store, model), cut(build("hma_search"), model)
    with torch.no_grad():
        ends = judge()
    reward, begin = ends["reward"], ends["initial_reward"]
    goals = {
        "front": Front(reward_from=begin, reward_to=reward, tax_to=1.0),
        "front, tax to aligned's": Front(reward_from=begin, reward_to=reward, tax_to=ends["tax"]),
        "least tax at .95": LeastTax.keeping(0.95, initial=begin, aligned=reward),
    }
    with torch.no_grad(), blended(model, initial, aligned, blocks) as blend:

        def evaluate(ratios: dict[str, float]) -> dict[str, Any]:
            blend.write(ratios)
            return dict(judge())

        def search(name: str, algorithm: str, count: int) -> np.ndarray:
            log = store.directory / "ratio-search" / f"{run.key}-{algorithm}-{name.replace(' ', '_')}.jsonl"
            log.parent.mkdir(exist_ok=True)
            found = search_ratios(
                evaluate, blocks, goals[name], evaluations=count, algorithm=algorithm, seed=run.seed, log=log
            )
            return np.array([[one.values["reward"], one.values["tax"]] for one in found.evaluations])

        random = search("front", "random", 10 * evaluations)
        for name, goal in goals.items():
            values = search(name, "model", evaluations)
            ours, theirs = (worth(goal, seen) for seen in (values, random))
            print(
                f"| {run.seed} | {name} | {evaluations} | {ours:.4f} | {theirs:.4f} | {ours / theirs:.4f} |", flush=True
            )
    print(json.dumps({"seed": run.seed, "aligned": ends}, default=float), flush=True)


def worth(goal: Front | LeastTax, values: np.ndarray) -> float:
    """The area of the front, or the ability kept by the best that keeps to the limit."""
    if isinstance(goal, Front):
        return goal.area(values)
    best = goal.best(values)
    return float("nan") if best is None else 1 - float(values[best, 1])


if __name__ == "__main__":
    main()
