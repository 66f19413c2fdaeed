"""What penalties and terms of the loss cost in a training step of a model with SmolLM2-135M's shape, random weights.

    python benchmarks/penalties.py [--threads 2] [--reps 7] [--rows 8] [--length 256] [--texts 8] [--words 64]
                                   [--only penalties|terms]

A step is forward, backward and AdamW on `rows` sequences of `length` tokens, float32 on the CPU. Pairs are taken in
turns within one process, the order alternating: with the method and without it; of penalties the optimizer's steps are,
and the median of forward and backward is added to both. Printed are the medians and quartiles of the pairs' ratios; for
a term also what its tokens are of the step's own, since they are read as those are.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from untaxed.method import Method
from untaxed.objectives import Distill, KLLoss, Replay
from untaxed.optim import L1, L2, Pipeline
from untaxed.training import attach

VOCABULARY = 49152


def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<eos>": 2, **{f"w{n}": n for n in range(3, 1000)}}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<eos>", pad_token="<eos>")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(label: str, pairs: list[tuple[float, float]], more: str = "") -> None:
    ratios = [ours / plain for ours, plain in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    ours, plain = (1e3 * statistics.median(column) for column in zip(*pairs))
    print(f"| {label} | {ours:.0f} | {plain:.0f} | {middle:.3f} | {low:.3f} to {high:.3f} | {more} |", flush=True)


def in_turns(ours: Callable[[], float], plain: Callable[[], float], reps: int) -> list[tuple[float, float]]:
    ours(), plain()
    pairs = []
    for number in range(reps):
        if number % 2:
            after, before = plain(), ours()
            pairs.append((before, after))
        else:
            pairs.append((ours(), plain()))
    return pairs


def penalties(policy: LlamaForCausalLM, batch: Tensor, reps: int) -> None:
    """The optimizer's step with the rule around it and without, beside forward and backward, which are alike."""

    def gradients() -> None:
        policy(input_ids=batch, labels=batch).loss.backward()

    gradients()
    policy.zero_grad()
    rest = statistics.median(seconds(gradients) for _ in range(2))
    for method in (L2(strength=100.0), L1(strength=0.1)):
        base = torch.optim.AdamW(policy.named_parameters(), lr=1e-6, fused=True)
        wrapped = Pipeline(base, displacement=method.displacement_rule())
        pairs = in_turns(lambda: seconds(wrapped.step), lambda: seconds(base.step), 2 * reps)  # noqa: B023
        report(method.name, [(rest + ours, rest + plain) for ours, plain in pairs])
    policy.zero_grad()


def terms(policy: LlamaForCausalLM, batch: Tensor, options: argparse.Namespace, folder: str) -> None:
    words = tokenizer()
    texts = [" ".join(f"w{3 + (7 * row + place) % 997}" for place in range(options.words)) for row in range(64)]
    arguments = TrainingArguments(folder, use_cpu=True, report_to=[], disable_tqdm=True, max_steps=1)
    reference = copy.deepcopy(policy)
    cases: list[tuple[str, Method, Any]] = [
        ("replay", Replay(texts=texts, batch_size=options.texts), None),
        ("kl_loss, a reference is there", KLLoss(prompts=texts, batch_size=options.texts), reference),
        ("kl_loss, initial's weights are lent", KLLoss(prompts=texts, batch_size=options.texts), None),
        ("distill, a reference is there", Distill(prompts=texts, batch_size=options.texts), reference),
    ]
    for label, method, other in cases:
        trainers: list[Any] = [Trainer(policy, arguments, processing_class=words) for _ in range(2)]
        for trainer in trainers:
            trainer.current_gradient_accumulation_steps = 1
            trainer.ref_model = other
            trainer.optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-9, fused=True)
        attached = attach(trainers[0], method)
        attached.in_loss.begin(attached.methods, fresh=True)

        def step(trainer: Any) -> float:
            def work() -> None:
                trainer.training_step(policy, {"input_ids": batch, "labels": batch})
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
                trainer.state.global_step += 1

            return seconds(work)

        pairs = in_turns(lambda: step(trainers[0]), lambda: step(trainers[1]), options.reps)  # noqa: B023
        report(label, pairs, f"{options.texts * options.words / batch.numel():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("reps", 7), ("rows", 8), ("length", 256), ("texts", 8), ("words", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=("penalties", "terms"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    policy = model()
    batch = torch.randint(3, 1000, (options.rows, options.length))
    print("| method | step with it, ms | without, ms | ratio | quartiles | its tokens / the step's |")
    print("|---|--:|--:|--:|---|--:|")
    if options.only != "terms":
        penalties(policy, batch, options.reps)
    if options.only != "penalties":
        with tempfile.TemporaryDirectory() as folder:
            terms(policy, batch, options, folder)


if __name__ == "__main__":
    main()
