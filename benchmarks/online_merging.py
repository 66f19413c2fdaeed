"""What a step of OnDARE and OnTIES costs beside torch's fused AdamW, in time and memory; float32 on the CPU.

    python benchmarks/online_merging.py [--threads 2] [--reps 15] [--only 20M|135M|memory]

Every time is the median over pairs taken in turns within one process: AdamW's step, then the other's, on the same
weights and moments, since where memory lies decides how fast it is. Ratios are taken pair by pair; their quartiles
stand beside the median. The eager transcription is the paper's algorithm box in plain torch operations.

Memory is the process's own anonymous memory (RssAnon) after three steps on 64 M parameters in bf16-valued checkpoint
files, minus that of AdamW in the same process layout; each case in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from untaxed.optim import OnDAREAdamW, OnTIESAdamW, sft_delta

Cases = dict[str, tuple[type, dict[str, Any]]]
CASES: Cases = {
    "OnDARE density 0.05": (OnDAREAdamW, {"density": 0.05}),
    "OnDARE density 0.05, delta mask once": (OnDAREAdamW, {"density": 0.05, "delta_mask": "once"}),
    "OnDARE density 0.05, delta in bf16": (OnDAREAdamW, {"density": 0.05, "bf16": True}),
    "OnDARE density 0.01": (OnDAREAdamW, {"density": 0.01}),
    "OnDARE density 0.01, delta in bf16": (OnDAREAdamW, {"density": 0.01, "bf16": True}),
    "OnDARE density 0.001": (OnDAREAdamW, {"density": 0.001}),
    "OnDARE density 1": (OnDAREAdamW, {"density": 1.0}),
    "update dropout 0.05 (weight 0)": (OnDAREAdamW, {"density": 0.05, "merge_weight": 0.0}),
    "OnTIES density 0.05": (OnTIESAdamW, {"density": 0.05}),
    "OnTIES density 0.01": (OnTIESAdamW, {"density": 0.01}),
}

APART, TURNS = 16 * 1009, 64  # entries between the gradients of one turn and the next; turns until they come again


def shapes(size: str) -> list[tuple[int, ...]]:
    """One tensor of 20 M entries, or the tensors of a 135 M-parameter Llama (30 layers of 576)."""
    if size == "20M":
        return [(20_000_000,)]
    layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,)]
    return [(49152, 576), *(shape for _ in range(30) for shape in layer), (576,)]


def made(size: str, seed: int, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"p{number}": torch.randn(shape, generator=generator).mul_(scale) for number, shape in enumerate(shapes(size))
    }


@cache
def pool(size: str) -> Tensor:
    """Where gradients are taken from."""
    largest = max(math.prod(shape) for shape in shapes(size))
    return torch.randn(largest + APART * TURNS, generator=torch.Generator().manual_seed(1)).mul_(1e-3)


def gradient(size: str, parameter: Tensor, turn: int) -> Tensor:
    """Other numbers at every turn: with the same ones again all updates would become equal in size."""
    start = APART * (turn % TURNS)
    return pool(size)[start : start + parameter.numel()].view(parameter.shape)


@cache
def parameters(size: str) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(tensor)) for name, tensor in made(size, 0, 0.02).items()]


def give_gradients(optimizer: Any, size: str, turn: int) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = gradient(size, parameter, turn)


def groups(named: list[tuple[str, torch.nn.Parameter]]) -> list[dict[str, Any]]:
    """Two groups, as trainers make them: matrices decay, vectors do not."""
    wide = [pair for pair in named if pair[1].dim() > 1 or len(named) == 1]
    rest = [pair for pair in named if not (pair[1].dim() > 1 or len(named) == 1)]
    return [{"params": part, "weight_decay": decay} for part, decay in ((wide, 0.1), (rest, 0.0)) if part]


class AlgorithmBox:
    """Algorithm 1 of the paper, operation by operation."""

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], delta: dict[str, Tensor], density: float) -> None:
        self.named, self.delta, self.density = named, delta, density
        self.param_groups = [{"params": [p for _, p in named]}]
        self.state = {p: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for _, p in named}

    @torch.no_grad()
    def step(self) -> None:
        for name, p in self.named:
            m, v = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            update = -1e-6 * m / (v + 1e-8).sqrt()
            kept = update * torch.bernoulli(torch.full_like(update, self.density))
            pull = self.delta[name] * torch.bernoulli(torch.full_like(update, self.density))
            p.add_((1 - 1e-4) * kept + 1e-4 * pull)


def compare(size: str, reps: int) -> None:
    delta = made(size, 2, 1e-3)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in delta.items()}
    plain = torch.optim.AdamW(groups(parameters(size)), lr=1e-6, fused=True)
    print(f"\n## {size}: {len(shapes(size))} tensors, {torch.get_num_threads()} threads, {reps} pairs\n")
    print("| step | ms | AdamW fused beside it, ms | ratio | quartiles |\n|---|--:|--:|--:|---|")
    for name, (cls, settings) in CASES.items():
        settings = {"merge_weight": 1e-4, **settings}
        held = narrow if settings.pop("bf16", False) else delta
        optimizer = cls(groups(parameters(size)), lr=1e-6, delta=held, **settings)
        report(name, size, plain, optimizer, reps)
        del optimizer
    report(
        "eager transcription, density 0.05", size, plain, AlgorithmBox(parameters(size), delta, 0.05), max(3, reps // 5)
    )


def report(name: str, size: str, plain: Any, other: Any, reps: int) -> None:
    seconds(plain, size, 0), seconds(other, size, 0)
    for parameter, state in plain.state.items():
        other.state[parameter].update({key: state[key] for key in ("exp_avg", "exp_avg_sq")})
    warm = 3 if reps < 10 else 20  # Adam's moments settle
    pairs = [(seconds(plain, size, turn), seconds(other, size, turn)) for turn in range(warm + reps)][warm:]
    ratios = [b / a for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    ours, theirs = (1e3 * statistics.median(column) for column in ([b for _, b in pairs], [a for a, _ in pairs]))
    print(f"| {name} | {ours:.1f} | {theirs:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


def seconds(optimizer: Any, size: str, turn: int) -> float:
    give_gradients(optimizer, size, turn)
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


# --- memory -------------------------------------------------------------------------------------------------------

MEMORY = {
    "AdamW": {},
    "OnDARE 0.05, dense fp32": {"storage": "dense"},
    "OnDARE 0.05, dense bf16": {"storage": "dense", "dtype": "bfloat16"},
    "OnDARE 0.05, sparse (mask once)": {"storage": "sparse", "delta_mask": "once"},
    "OnDARE 0.05, memory-mapped": {"storage": "memory_mapped"},
    "OnTIES 0.05, memory-mapped": {"storage": "memory_mapped", "ties": True},
}
COUNT = 64 * 1024 * 1024


def memory() -> None:
    print("\n## Memory, 64 M parameters\n\n| optimizer | bytes a parameter over AdamW |\n|---|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("initial", "pretrained")):
            (Path(folder) / name).mkdir()
            weights = torch.randn(COUNT, generator=torch.Generator().manual_seed(number)).to(torch.bfloat16)
            save_file({"w": weights.view(1024, -1)}, Path(folder) / name / "model.safetensors")
            (Path(folder) / name / "config.json").write_text('{"model_type": "llama"}')
        base = None
        for name, settings in MEMORY.items():
            call = [sys.executable, __file__, "--one", json.dumps({**settings, "folder": folder})]
            held = int(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1])
            base = held if base is None else base
            print(f"| {name} | {(held - base) / COUNT:.2f} |", flush=True)


def one(settings: dict[str, Any]) -> None:
    """One case of `memory`, in this process: prints its anonymous memory."""
    folder = Path(settings.pop("folder"))
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(1024, COUNT // 1024, generator=generator).mul_(0.02))
    if settings:
        cls = OnTIESAdamW if settings.pop("ties", False) else OnDAREAdamW
        dtype = getattr(torch, settings.pop("dtype", "float32"))
        delta = sft_delta(folder / "initial", folder / "pretrained", storage=settings.pop("storage"), dtype=dtype)
        optimizer: Any = cls([("w", weight)], lr=1e-6, density=0.05, merge_weight=1e-3, delta=delta, **settings)
    else:
        optimizer = torch.optim.AdamW([weight], lr=1e-6, fused=True)
    for _ in range(3):
        weight.grad = torch.randn(1024, COUNT // 1024, generator=generator)
        optimizer.step()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(int(line.split()[1]) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--only", choices=("20M", "135M", "memory"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        one(json.loads(arguments.one))
        return
    for size in ("20M", "135M"):
        if arguments.only in (None, size):
            compare(size, arguments.reps)
    if arguments.only in (None, "memory"):
        memory()


if __name__ == "__main__":
    main()
