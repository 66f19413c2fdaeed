"""One of two processes of `test_sharded.py`: terms of the loss under DDP and FSDP2 equal those of one process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sharded_worker import agreed, trainer, whole
from tiny import WORDS
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.method import Method
from untaxed.objectives import KLLoss, Replay
from untaxed.optim import L1, L2
from untaxed.training import attach
from untaxed.training.state import read_state

TEXTS = tuple(" ".join(WORDS[(3 * i + 5 * k) % 28] for k in range(2 + i % 6)) for i in range(11))
CASES: dict[str, list[Method]] = {
    "terms": [Replay(texts=TEXTS, batch_size=3), KLLoss(prompts=TEXTS, coefficient=3.0, batch_size=4)],
    "share": [Replay(texts=TEXTS, share=0.3)],
    "penalties": [L1(strength=0.05), L2(strength=100.0)],
}


def trained(
    initial: Path, folder: Path, backend: str, case: str, *, reference: bool = False
) -> dict[str, torch.Tensor]:
    """Final weights, which must agree between processes, of two micro-batches each."""
    ours = trainer(initial, folder, backend)
    ours.args.gradient_accumulation_steps = ours.accelerator.gradient_accumulation_steps = 2
    ours.args.per_device_train_batch_size = 2
    if reference:
        ours.ref_model = load_model(initial)
        if backend == "fsdp2":
            fully_shard(ours.ref_model)
    attached = attach(ours, *CASES[case])
    ours.train()
    if case == "terms":
        kept = attached.in_loss._initial._kept  # type: ignore[union-attr]
        assert bool(kept) != reference
    if attached.in_loss.terms:
        attached.save(folder / backend)
        saved = read_state(folder / backend / "untaxed", rank=dist.get_rank(), world=2)["states"]
        assert [state["drawn"] for state in saved] == [term._drawn for term in attached.in_loss.terms]
    return agreed(whole(ours.model))


def by_hand(initial: Path, folder: Path) -> None:
    """What one step of gradient descent moves more with a term than without is the gradient over all its texts."""
    ends = []
    for methods in ([], [Replay(texts=TEXTS, coefficient=0.5, batch_size=len(TEXTS))]):
        ours = trainer(initial, folder, "ddp")
        ours.args.max_steps, ours.args.max_grad_norm, ours.args.lr_scheduler_type = 1, 0.0, "constant"
        ours.optimizer = torch.optim.SGD(ours.model.parameters(), lr=1.0)
        if methods:
            attach(ours, *methods)
        ours.train()
        ends.append(whole(ours.model))
    model, tokenizer = load_model(initial), load_tokenizer(initial)
    rows = [torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]) for text in TEXTS]
    costs = [cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum") for ids in rows]
    (0.5 * torch.stack(costs).sum() / sum(len(ids) - 1 for ids in rows)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ends[1][name] - ends[0][name], -parameter.grad, rtol=1e-3, atol=2e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, place = Path(sys.argv[1]), Path(sys.argv[2])
    for name in CASES:
        replicated = trained(start, place, "ddp", name)
        others = [trained(start, place, "fsdp2", name)]
        if name == "terms":
            others += [trained(start, place, backend, name, reference=True) for backend in ("ddp", "fsdp2")]
        for other in others:
            for key, tensor in replicated.items():
                torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-5)
    by_hand(start, place)
    dist.destroy_process_group()
