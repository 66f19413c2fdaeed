"""What OGPSA and NSPO cost beside a training step, and NSPO's look at general prompts beside a forward pass.

    python benchmarks/projections.py [--threads 2] [--reps 9] [--layers 30] [--only ogpsa|nspo|covariance]

The model has the shape of SmolLM2-135M and random weights; float32 on the CPU. A training step is forward, backward and
AdamW on 8 sequences of 256 tokens. What is compared is taken in turns within one process, and ratios pair by pair:
median and quartiles, of wall time and of this process's processor time, which other work on the machine disturbs less.

    ogpsa       the projection of a step's gradient, beside the training step; the refresh is apart
    nspo        one projection of the displacement of all linear layers, divided by 5, beside the training step
    covariance  forward passes with and without the sums over layers' inputs, as speed: 1 is as fast
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from untaxed.optim import Pipeline
from untaxed.projections import NullSpace, Orthogonal, Protect, Subspace, covariances, linear_layers

SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
Work = Callable[[], object]


def seconds(work: Work) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def pairs(label: str, work: Work, beside: Work, reps: int, *, share: float = 1.0, speed: bool = False) -> None:
    """Prints the ratio of two works, of the second's time; as a speed its inverse."""
    work(), beside()
    taken = [(seconds(work), seconds(beside)) for _ in range(reps)]
    for kind, at in (("wall", 0), ("processor", 1)):
        ratios = [a[at] * share / b[at] for a, b in taken]
        ratios = [1 / ratio for ratio in ratios] if speed else ratios
        low, middle, high = statistics.quantiles(ratios, n=4)
        ours, theirs = (1e3 * statistics.median(times[at] for times in column) for column in zip(*taken))
        print(f"| {label} | {kind} | {ours:.0f} | {theirs:.0f} | {middle:.4f} | {low:.4f} to {high:.4f} |", flush=True)


def made() -> tuple[Any, torch.optim.Optimizer, Work]:
    """The model, its optimizer and a training step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(0, 1000, (8, 256))

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return model, optimizer, step


def ogpsa(reps: int) -> None:
    for count, scope in ((1, "tensor"), (2, "tensor"), (2, "model")):
        model, _, step = made()
        sets = {f"set {number}": [torch.randint(0, 1000, (1, 32))] for number in range(count)}
        loss = lambda model, ids: model(input_ids=ids, labels=ids).loss  # noqa: E731
        rule = Orthogonal(sets, loss=loss, refresh_every=10**6, scope=scope).bind(model)
        still = torch.optim.SGD(model.named_parameters(), lr=0.0)
        optimizer = Pipeline(still, gradient=rule)
        step()
        optimizer.step()  # the refresh
        lives = list(optimizer._lives())
        pairs(f"ogpsa, {count} sets, scope {scope}", lambda: optimizer._shape_gradients(lives), step, reps)  # noqa: B023


def nspo(reps: int) -> None:
    for free in (0.5, 0.2, 0.05):
        model, _, step = made()
        step()
        rule = NullSpace([""], Protect(), every=1)
        bases: dict[int, Subspace] = {}
        for width in (576, 1536):
            columns = min(round(free * width), width - round(free * width))
            bases[width] = Subspace(torch.linalg.qr(torch.randn(width, columns))[0], free=free <= 0.5)
        layers = {f"{name}.weight": layer for name, layer in linear_layers(model).items()}
        optimizer = Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.0), displacement=rule)
        for live in optimizer._lives():
            own: dict[str, Any] = {"step": 1}
            if live.place.name in layers:
                width = live.parameter.shape[1]
                basis = bases[width]
                own["displacement.0"] = {"basis": basis.basis, "free": basis.free, "input": str(width)}
                own["initial"] = live.wide + 1e-4 * torch.randn_like(live.wide)
            optimizer._own[live.place.name] = own
        lives = list(optimizer._lives())
        rule.begin([optimizer._entry(live, optimizer._sites["displacement"][0]) for live in lives],
                   [live.own.get("displacement.0", {}) for live in lives])  # fmt: skip

        def project() -> None:
            with torch.no_grad():
                for live in lives:  # noqa: B023
                    optimizer._displace(live)  # noqa: B023

        pairs(f"nspo every 5 steps, {free:.0%} free", project, step, reps, share=1 / 5)


def covariance(reps: int) -> None:
    model, _, _ = made()
    model.eval()
    layers = linear_layers(model)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 1000, (64,), generator=generator).tolist() for _ in range(128)]
    batches = [torch.tensor(texts[at : at + 8]) for at in range(0, 128, 8)]

    def plain() -> None:
        with torch.no_grad():
            for ids in batches:
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    pairs("covariance, all linear layers", lambda: covariances(model, layers, texts), plain, reps, speed=True)
    mlp = linear_layers(model, "mlp")
    pairs("covariance, mlp", lambda: covariances(model, mlp, texts), plain, reps, speed=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--layers", type=int, default=30, help="fewer than the model has, for a busy machine")
    parser.add_argument("--only", choices=["ogpsa", "nspo", "covariance"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    SHAPE["num_hidden_layers"] = arguments.layers
    print("| what | time | ms | beside it, ms | ratio | quartiles |\n|---|---|--:|--:|--:|---|")
    for name, part in (("ogpsa", ogpsa), ("nspo", nspo), ("covariance", covariance)):
        if arguments.only in (None, name):
            part(arguments.reps)


if __name__ == "__main__":
    main()
