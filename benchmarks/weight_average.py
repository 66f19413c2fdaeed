"""What an average of the weights and a reset cost: beside a copy of the parameters, and in a training step of 135 M.

    python benchmarks/weight_average.py [--threads 2] [--reps 15] [--model DIRECTORY]

Shapes are those of a 135 M-parameter Llama (272 tensors); float32, and bfloat16 weights with the float32 average. Times
are taken in turns within one process, medians and quartiles of ratios. With a model's directory (SmolLM2-135M, say) a
training step is taken too: forward, backward and AdamW on 8 sequences of 256 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from untaxed.callbacks import ElasticResetState, WeightAverage
from untaxed.weights import trainable


class Shapes(nn.Module):
    """The parameters of a 135 M-parameter Llama, without its computation."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,)]
        shapes = [(49152, 576), *(shape for _ in range(30) for shape in layer), (576,)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype)) for shape in shapes)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(label: str, work: Callable[[], object], beside: Callable[[], object], reps: int) -> None:
    for _ in range(3):
        work(), beside()
    pairs = [(seconds(work), seconds(beside)) for _ in range(reps)]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    ours, theirs = (1e3 * statistics.median(column) for column in zip(*pairs))
    print(f"| {label} | {ours:.1f} | {theirs:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)


def copies(reps: int) -> None:
    print("| what | ms | copy of the parameters, ms | ratio | quartiles |\n|---|--:|--:|--:|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model = Shapes(dtype)
        average = WeightAverage(model, decay=0.99)
        own = list(trainable(model).values())
        target = [torch.empty_like(tensor) for tensor in own]
        wide = [torch.empty_like(tensor, dtype=torch.float32) for tensor in own]
        name = str(dtype).removeprefix("torch.")
        ratio(f"update of the average, {name} weights", average.update, lambda: torch._foreach_copy_(target, own), reps)  # noqa: B023
        if dtype != torch.float32:
            ratio("the same, beside a copy into float32", average.update, lambda: torch._foreach_copy_(wide, own), reps)  # noqa: B023
    model = Shapes(torch.float32)
    reset = ElasticResetState(model, decay=0.99, reset_every=1)
    own = list(trainable(model).values())
    target = [torch.empty_like(tensor) for tensor in own]
    ratio("update and reset, float32 weights", reset.step, lambda: torch._foreach_copy_(target, own), reps)


def training(directory: str, reps: int) -> None:
    from untaxed.checkpoints import load_model

    model = load_model(directory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(0, 1000, (8, 256))

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    reset = ElasticResetState(model, decay=0.99, reset_every=4)
    print("\n| what | ms | training step, ms | share | quartiles |\n|---|--:|--:|--:|---|")
    ratio("average at every step, a reset at every fourth", reset.step, step, reps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    copies(arguments.reps)
    if arguments.model:
        training(arguments.model, max(3, arguments.reps // 3))


if __name__ == "__main__":
    main()
