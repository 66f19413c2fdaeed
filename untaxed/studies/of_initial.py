"""What is made of the initial model alone, without training: the best of n of its responses.

runs/<key>/made/responses@initial/<split>.npz    what every response of every prompt measures, a column a draw
                                  <split>.json   the responses to the first prompts

Draws are numbered, and each follows from the run's seed, split and number. So n of any size share them, a killed run
goes on after its last one, and more of them are drawn only where more are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..decoding import BestOfN
from ..measuring import Reading, undisturbed
from ..measuring.best_of import TOKENS, Drawn, numbered, read_best_of
from ..measuring.drift import token_counts
from ..measuring.sampling import Completions, sample
from ..measuring.suite import Scores, Split
from .arms import INITIAL, Chain, RunPlan, variant, variant_name
from .bench import Bench
from .points import TEXTS, Points
from .store import Store, read_json, read_scores, write_json, write_scores


def measure_of_initial(
    bench: Bench,
    store: Store,
    run: RunPlan,
    points: Points,
    after: Chain,
    splits: Iterable[Split],
    tell: Callable[[str], None],
) -> None:
    """Measures the best of n responses of the initial model and puts the numbers to its point."""
    [method] = after
    assert isinstance(method, BestOfN)  # the only row of this kind
    scores, readings = read_scores(store.initial / "scores.npz"), dict[str, Reading]()
    for split in splits:
        begins = f"initial/{split}/"
        start = {key.removeprefix(begins): value for key, value in scores.items() if key.startswith(begins)}
        drawn = draw(bench, store, run, method.samples, split, tell)
        readings[split] = read_best_of(bench.suite, drawn, method.n, start, bench.suite.prompts[split])
    about = {"name": variant_name(after, INITIAL), "variant": variant(after, INITIAL), "step": 0, "phase": None}
    points.put({**about, "steps_since_reset": None, "weights": None}, readings)


def draw(bench: Bench, store: Store, run: RunPlan, samples: int, split: Split, tell: Callable[[str], None]) -> Drawn:
    """That many responses of the initial model to every prompt of a split, those that are there among them."""
    folder, prompts = store.run(run.key) / "made" / f"responses@{INITIAL}", bench.suite.prompts[split]
    drawn = _read(folder, split)
    for number in range(_count(drawn), samples):
        tell(f"{split} response {number + 1} of {samples}")
        sampling = replace(bench.suite.sampling, seed=_seed(run.seed, split, number))
        with undisturbed(bench.initial.model, bench.tokenizer):
            drawn = _with(bench, drawn, sample(bench.initial.model, bench.tokenizer, prompts, sampling))
        write_json(folder / f"{split}.json", drawn.texts)
        write_scores(folder / f"{split}.npz", drawn.numbers)  # last: it says how many there are
    return Drawn({key: columns[:, :samples] for key, columns in drawn.numbers.items()}, drawn.texts)


def _count(drawn: Drawn) -> int:
    return drawn.numbers[TOKENS].shape[1] if drawn.numbers else 0


def _with(bench: Bench, drawn: Drawn, new: Completions) -> Drawn:
    """One more draw, measured."""
    columns: dict[str, Scores] = {TOKENS: token_counts(new)}
    columns |= {one.key: one.each(new) for one in numbered(bench.suite) if one.each is not None}
    numbers = {
        key: np.concatenate([drawn.numbers.get(key, column[:, None][:, :0]), column[:, None]], axis=1)
        for key, column in columns.items()
    }
    before = drawn.texts or [[] for _ in new.texts[:TEXTS]]
    return Drawn(numbers, [[*texts, text] for texts, text in zip(before, new.texts)])


def _read(folder: Path, split: Split) -> Drawn:
    """What was drawn before; nothing where nothing was."""
    if not (folder / f"{split}.npz").exists():
        return Drawn({}, [])
    numbers = read_scores(folder / f"{split}.npz")
    count = numbers[TOKENS].shape[1]
    return Drawn(numbers, [texts[:count] for texts in read_json(folder / f"{split}.json")])


def _seed(seed: int, split: Split, number: int) -> int:
    digest = hashlib.sha256(f"response {number} on {split}, seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # below 2**63
