"""By hand: builds the embedded worlds again and compares them with what is shipped (8 minutes of one core).

    python benchmarks/pocket_rebuild.py [--built DIR]

On the machine that made the shipped files all bytes are equal. Elsewhere sums may be taken in another order: there the
easy abilities must agree within 0.03, and the harder ones, which stand on a slope of learning, within 0.25.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from untaxed import pocket
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import measure
from untaxed.measuring.subject import Subject
from untaxed.pocket.world import DATA

EASY = ("facts", "reading", "translation", "arithmetic", "lookalike", "lookalike_owner")


def abilities(world: pocket.World, directory: Path) -> dict[str, float]:
    """Abilities of a world's initial model in a build's directory, on test items."""
    path = directory / world.folder / "initial"
    subject = Subject(load_model(path), load_tokenizer(path), world.suite())
    return measure(subject, "test", ["abilities"]).values["abilities"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--built", type=Path, help="a directory that was built already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        built = options.built or pocket.build(scratch, progress=print)
        for path in sorted(DATA.rglob("*.*")):
            same = path.read_bytes() == (built / path.relative_to(DATA)).read_bytes()
            print(f"{'equal' if same else 'DIFFERS':8s}{path.relative_to(DATA)}")
        for world in pocket.WORLDS.values():
            print(world.name)
            compare(abilities(world, DATA), abilities(world, built))


def compare(shipped: dict[str, float], again: dict[str, float]) -> None:
    for name in shipped:
        difference = abs(shipped[name] - again[name])
        verdict = "ok" if difference <= (0.03 if name in EASY else 0.25) else "TOO FAR"
        print(f"{name:16s} shipped {shipped[name]:.3f}  rebuilt {again[name]:.3f}  {verdict}")


if __name__ == "__main__":
    main()
