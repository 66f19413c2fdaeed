"""One of two processes of `test_sharded.py`: `python sharded_worker.py INITIAL FOLDER`, in torch's usual environment.

accelerate takes its FSDP path on accelerators only; here it is told to take it on the CPU with gloo.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import WORDS

from untaxed.callbacks import (
    BEMAState,
    DriftMeter,
    ElasticReset,
    ElasticResetState,
    SyncReference,
    SyncReferenceState,
)
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.comparison import load_suite
from untaxed.measuring import Item, Sampling, Suite, exact_match, reward
from untaxed.measuring.suite import SPLITS
from untaxed.optim import ChildTuning, OnDARE, OnDAREAdamW, Pipeline
from untaxed.training import KeepBest, SuiteMeter, attach
from untaxed.training.state import read_state
from untaxed.weights import same, trainable

SETTINGS = {"decay": 0.6, "reset_every": 2}


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """Full tensors by name; every process must call it."""
    return {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()
        for name, parameter in model.named_parameters()
    }


def plain_loop() -> None:
    """The same batches in every process: a sharded model must follow a whole one to the bit, uneven shards included."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    sharded = copy.deepcopy(alone)
    fully_shard(sharded)
    pairs = [
        (model, torch.optim.AdamW(model.parameters(), lr=0.1), ElasticResetState(model, **SETTINGS))
        for model in (alone, sharded)
    ]
    for step in range(1, 8):
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizer, reset in pairs:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            assert reset.step() == (step % 2 == 0)
        assert same(whole(alone), whole(sharded)), f"the sharded model left the whole one at step {step}"
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())


def references() -> None:
    """The reference of a sharded policy, itself sharded, follows as a whole one does: to the bit, and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        alone = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        anchor = copy.deepcopy(alone).to(dtype)
        models = [(alone, anchor), (copy.deepcopy(alone), copy.deepcopy(anchor))]
        for layer in (models[1][0][0], models[1][0], models[1][1]):  # the policy in parts, as accelerate does it
            fully_shard(layer)
        made = [
            [
                SyncReferenceState(policy, reference, share=0.6, sync_every=2),
                BEMAState(policy, update_every=2, lag=0),
            ]
            for policy, reference in models
        ]
        for step in range(1, 8):
            for (policy, _), states in zip(models, made, strict=True):
                for number, parameter in enumerate(policy.parameters()):
                    update = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
                    with torch.no_grad():
                        parameter.add_(distribute_tensor(update, parameter.device_mesh, parameter.placements)
                                       if isinstance(parameter, DTensor) else update)  # fmt: skip
                for state in states:
                    state.step()
            assert same(whole(models[0][1]), whole(models[1][1])), f"the references differ at step {step}"
            ours = made[1][1].variant()
            for name, parameter in models[1][0].named_parameters():
                expected = distribute_tensor(made[0][1].variant()[name], parameter.device_mesh, parameter.placements)
                assert torch.equal(ours[name], expected.to_local()), name
        assert all(isinstance(parameter, DTensor) for parameter in models[1][1].parameters())


def trainer(initial: Path, folder: Path, backend: str) -> Trainer:
    tokenizer = load_tokenizer(initial)
    rows = [tokenizer(f"{WORDS[i % 28]} {WORDS[(3 * i + 1) % 28]} {WORDS[(7 * i + 1) % 28]}") for i in range(64)]
    options: dict[str, Any] = {
        "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 5,
        "learning_rate": 1e-3, "per_device_train_batch_size": 4, "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    built = Trainer(
        load_model(initial),
        TrainingArguments(str(folder), **options),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    built.remove_callback(PrinterCallback)
    if backend == "fsdp2":
        built.accelerator.state.distributed_type = DistributedType.FSDP
        built.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )
        built.is_fsdp_enabled = True
    return built


def merged(initial: Path, folder: Path, backend: str, *, general: bool) -> dict[str, torch.Tensor]:
    """Trains with OnDARE in the step, as merged AdamW or in a Pipeline; the processes' weights must agree."""
    ours = trainer(initial, folder, backend)
    generator = torch.Generator().manual_seed(0)
    delta = {name: torch.randn(p.shape, generator=generator) for name, p in ours.model.named_parameters()}
    methods = [ChildTuning(density=0.8)] if general else []
    attached = attach(ours, *methods, OnDARE(density=0.5, merge_weight=0.01, merge_every=2, delta=delta))
    ours.train()
    assert isinstance(attached.in_step.optimizer, Pipeline if general else OnDAREAdamW)
    assert isinstance(next(ours.model.parameters()), DTensor) == (backend == "fsdp2")
    return agreed(whole(ours.model))


def metered(initial: Path, folder: Path, backend: str, unwatched: dict[str, torch.Tensor]) -> dict[str, float]:
    """Trains as `trained` does, with a drift meter, which must change nothing; returns its last reading.

    The meter reads at the steps of the resets, just before them: weights that its forward pass gathered must not be
    what training goes on with.
    """
    ours = trainer(initial, folder, backend)
    even = reward("proxy", lambda prompts, texts: [float(len(text)) for text in texts])
    items = (Item(WORDS[1], WORDS[4]), Item(WORDS[2], WORDS[7]))
    asked = exact_match("next", dict.fromkeys(SPLITS, items))
    suite = Suite((even, asked), ("next",), (), dict.fromkeys(SPLITS, tuple(WORDS[:3])), Sampling(4))
    best = KeepBest(folder / f"best-{backend}", tax_at_most=1)
    suite_meter = SuiteMeter(suite, every=2, keep_best=best)
    meter = DriftMeter(WORDS[:3], every=2, max_new_tokens=4, general_prompts=WORDS[5:7])
    attached = attach(ours, meter, suite_meter, ElasticReset(**SETTINGS))
    ours.train()
    kept = [line for line in ours.state.log_history if "suite/reward/proxy" in line]
    assert [line["step"] for line in kept] == [2, 4]
    assert load_model(folder / f"best-{backend}" / "best").num_parameters() == load_model(initial).num_parameters()
    assert same(agreed(whole(ours.model)), unwatched)
    reading = attached.drift()
    everyones: list[Any] = [None, None]
    dist.all_gather_object(everyones, reading)
    assert everyones[0] == everyones[1]
    assert reading["step"] == 4
    assert reading["forward_kl"] > 0 < reading["general_forward_kl"]
    return reading


def read_apart(initial: Path, folder: Path) -> None:
    """A process of its own, started by the first of the two, reads of saved shards what both read of the policy."""
    file, readings = folder / "suite.yaml", []
    if dist.get_rank() == 0:
        prompts = "".join(json.dumps({"prompt": f"{one} {other}"}) + "\n" for one in WORDS[:6] for other in WORDS[:6])
        (folder / "prompts.jsonl").write_text(prompts)
        file.write_text(
            'prompts: {path: prompts.jsonl}\nreward: {proxy: "tiny:reward"}\ndrift: []\nmax_new_tokens: 6\n'
        )
    dist.barrier()
    for in_process in (True, False):
        ours = trainer(initial, folder, "fsdp2")
        attach(ours, SuiteMeter(load_suite(file), every=4, in_process=in_process))
        ours.train()
        readings.append([line["suite/reward/proxy"] for line in ours.state.log_history if "suite/reward/proxy" in line])
        readings.append([float(tensor.double().sum()) for tensor in agreed(whole(ours.model)).values()])
    assert len(readings[0]) == 1
    assert readings[:2] == readings[2:]


def agreed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, after a look at whether the first process has the same."""
    for tensor in weights.values():
        other = tensor.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, tensor)
    return weights


def anchored(initial: Path, folder: Path, backend: str) -> dict[str, torch.Tensor]:
    """Trains with a reference that becomes the policy at step 4; returns it, which must be the policy of that step."""
    ours: Any = trainer(initial, folder, backend)
    ours.ref_model, ours.beta = load_model(initial), 0.1
    if backend == "fsdp2":
        fully_shard(ours.ref_model)
    attached = attach(ours, SyncReference(share=1.0, sync_every=4))
    seen: dict[int, dict[str, torch.Tensor]] = {}
    attached.observer = lambda step, **_: seen.update({step: whole(ours.model)})
    ours.train()
    assert same(whole(ours.ref_model), seen[4])
    attached.save(folder / backend)
    saved = read_state(folder / backend / "untaxed", rank=dist.get_rank(), world=2)["states"][0]
    assert same(saved["reference"], trainable(ours.ref_model))
    return agreed(whole(ours.ref_model))


def trained(initial: Path, folder: Path, backend: str) -> dict[str, torch.Tensor]:
    """Trains with Elastic Reset attached; returns the final weights, which must agree between processes."""
    ours = trainer(initial, folder, backend)
    attached = attach(ours, ElasticReset(**SETTINGS))
    assert attached.describe()["backend"] == backend
    ours.train()
    assert attached.state_dict()["states"][0]["resets"] == 2
    assert isinstance(next(ours.model.parameters()), DTensor) == (backend == "fsdp2")
    assert {tuple(t.shape) for t in trainable(ours.model).values()} == {
        tuple(t.shape) for t in attached.state_dict()["states"][0]["average"].values()
    }
    attached.save(folder / backend)
    rank = dist.get_rank()
    saved = read_state(folder / backend / "untaxed", rank=rank, world=2)["states"][0]
    assert same(saved["average"], attached.state_dict()["states"][0]["average"])
    return agreed(whole(ours.model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, place = Path(sys.argv[1]), Path(sys.argv[2])
    replicated = [trained(start, place, "ddp")]
    replicated += [merged(start, place, "ddp", general=general) for general in (False, True)]
    replicated.append(anchored(start, place, "ddp"))
    plain_loop()
    references()
    sharded = [trained(start, place, "fsdp2")]
    sharded += [merged(start, place, "fsdp2", general=general) for general in (False, True)]
    sharded.append(anchored(start, place, "fsdp2"))
    readings = [
        metered(start, place, backend, weights[0]) for backend, weights in (("ddp", replicated), ("fsdp2", sharded))
    ]
    torch.testing.assert_close(readings[1], readings[0], rtol=1e-3, atol=1e-4)
    for alike, cut in zip(replicated, sharded, strict=True):
        for name, tensor in alike.items():
            torch.testing.assert_close(cut[name], tensor, rtol=1e-4, atol=1e-5)
    read_apart(start, place)
    dist.destroy_process_group()
