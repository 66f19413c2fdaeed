"""Plain runs on an embedded world: does it show a tax that early stopping alone does not cure?

    python benchmarks/pocket_design.py [--world pocket_safety] --seeds 5 [--algorithm dpo] [--set learning_rate=1e-4 …]

Prints gold, proxy and tax over steps, their means over seeds with Student's intervals at the shipping point (highest
mean validation proxy) and at matched reward q = 0.95, and what one run costs. Remedies play no part here: settings of
an embedded world are chosen on plain runs alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from untaxed import pocket
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import measure
from untaxed.measuring.statistics import student
from untaxed.measuring.subject import Subject
from untaxed.training import make_trainer, train

SPLITS = ("validation", "test")


def run(algorithm: str, arguments: dict, seed: int, every: int, task, initial: Subject) -> dict:
    """One plain run: its points on both splits and its seconds."""
    points, measuring, tokenizer = [], 0.0, initial.tokenizer

    def look(step: int, model: torch.nn.Module, splits: tuple[str, ...]) -> None:
        nonlocal measuring
        began = time.perf_counter()
        subject = initial if step == 0 else Subject(model, tokenizer, task.suite, initial)
        points.append({"step": step} | {split: measure(subject, split).values for split in splits})
        measuring += time.perf_counter() - began

    look(0, initial.model, SPLITS)
    measuring = 0.0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(algorithm, arguments, task=task, seed=seed, output_dir=scratch)
        train(trainer, every=every, observe=lambda moment: look(moment.step, moment.model, SPLITS))
    return {"seed": seed, "points": points, "measuring": measuring, "seconds": time.perf_counter() - began}


def tax(point: dict, start: dict, names: tuple[str, ...], chance: dict[str, float]) -> float:
    """1 - mean retention, as the frontier defines it."""
    kept = [(point["abilities"][n] - chance[n]) / (start["abilities"][n] - chance[n]) for n in names]
    return 1 - float(np.mean(kept))


def report(runs: list[dict], suite) -> None:
    """Prints the table of steps and the three criteria."""
    chance = {one.name: one.chance for one in suite.group("abilities")}
    steps = [point["step"] for point in runs[0]["points"]]

    def grid(value) -> dict[str, np.ndarray]:  # (seeds, steps) a split
        return {s: np.array([[value(p[s], r["points"][0][s]) for p in r["points"]] for r in runs]) for s in SPLITS}

    gold, proxy = (grid(lambda p, _, k=key: p["reward"][k]) for key in ("gold", "proxy"))
    select = grid(lambda p, start: tax(p, start, suite.select, chance))
    other = grid(lambda p, start: tax(p, start, suite.report, chance))
    each = {n: grid(lambda p, start, n=n: tax(p, start, (n,), chance))["test"].mean(0) for n in chance}
    kl = grid(lambda p, _: p["drift"]["forward_kl"])["test"].mean(0)
    for at, step in enumerate(steps):
        row = "  ".join(f"{name} {value[at]:.2f}" for name, value in each.items())
        print(
            f"step {step:4d}  gold {gold['test'][:, at].mean():.3f}  proxy {proxy['test'][:, at].mean():.2f}  "
            f"tax {select['test'][:, at].mean():.3f}  report {other['test'][:, at].mean():.3f}  kl {kl[at]:.2f} | {row}"
        )
    ship = int(proxy["validation"].mean(0).argmax())
    means = gold["validation"].mean(0)
    need = means[0] + 0.95 * (means[ship] - means[0])
    able = [at for at in range(len(steps)) if means[at] >= need]
    matched = min(able, key=lambda at: select["validation"][:, at].mean())
    print(f"largest fall of mean gold from its peak so far: {(1 - means / np.maximum.accumulate(means)).max():.3f}")
    print(f"shipping point: step {steps[ship]}; matched reward q=0.95: step {steps[matched]}")
    for name, values in (("select", select), ("report", other)):
        for where, at in (("ship", ship), ("q0.95", matched)):
            print(f"{name} tax at {where}: {student(values['test'][None, :, at])}")
    print(f"seconds a run, measuring both splits: {[round(r['seconds'], 1) for r in runs]}")
    print(f"of them measuring: {[round(r['measuring'], 1) for r in runs]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="pocket", choices=pocket.WORLDS)
    parser.add_argument("--algorithm", default="dpo")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--every", type=int, default=pocket.EVERY)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the algorithm")
    parser.add_argument("--items", type=int, default=1000, help="questions an ability and split")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = pocket.WORLDS[options.world].task(options.items)
    initial = Subject(load_model(task.initial), load_tokenizer(task.initial), task.suite)
    arguments = {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in options.set)}
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        runs.append(run(options.algorithm, arguments, seed, options.every, task, initial))
        print(f"seed {seed}: {runs[-1]['seconds']:.1f} s", flush=True)
        if options.out:
            options.out.write_text(json.dumps(runs))
    report(runs, task.suite)


if __name__ == "__main__":
    main()
