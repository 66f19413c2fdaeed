"""One of two processes of `test_sharded_projections.py`: `python projections_worker.py INITIAL FOLDER`.

The same training in one whole model (DDP), in one sharded by rows (FSDP2), and, where that is possible, in a single
process on all of the batches: the projections must agree.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from sharded_worker import agreed, trainer, whole
from tiny import WORDS

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.optim import Pipeline
from untaxed.projections import NSPO, OGPSA, NullSpace, Orthogonal, Protect, project_activations
from untaxed.sites import Host
from untaxed.training import attach

PROMPTS = [" ".join(WORDS[(i * j) % 28] for j in range(1, 3 + i % 5)) for i in range(13)]
SETS = {
    "texts": PROMPTS[:7],
    "answers": [{"prompt": prompt, "completion": WORDS[at]} for at, prompt in enumerate(PROMPTS)],
}
PROTECT = Protect(threshold="rank", value=10)


def pair(initial: Path) -> tuple[nn.Module, nn.Module]:
    """A whole model and its sharded twin, its layers by themselves."""
    alone = load_model(initial)
    sharded = copy.deepcopy(alone)
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    return alone, sharded


def rules(initial: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(initial)
    sets, protect = (SETS, {"refresh_every": 2}), (PROMPTS, PROTECT)
    host = Host(tokenizer=tokenizer)

    def orthogonal(model: nn.Module, **options: Any) -> Orthogonal:
        return Orthogonal(sets[0], **sets[1], **options).bind(model, host)

    return {
        "ogpsa tensor": lambda model: {"gradient": orthogonal(model)},
        "ogpsa model": lambda model: {"gradient": orthogonal(model, scope="model", when="conflict")},
        "ogpsa update": lambda model: {"update": orthogonal(model, site="update")},
        "nspo": lambda model: {"displacement": NullSpace(*protect, every=2).bind(model, host)},
        "nspo gradient": lambda model: {"gradient": NullSpace(*protect, site="gradient").bind(model, host)},
    }


def stepped(model: nn.Module, sites: dict[str, Any], steps: int = 4) -> Pipeline:
    """The same batches in every process, so that a sharded model must follow a whole one."""
    optimizer = Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.5, momentum=0.9), **sites)
    for step in range(steps):
        go(model, optimizer, step)
    optimizer.flush()
    return optimizer


def go(model: nn.Module, optimizer: Pipeline, step: int) -> None:
    ids = torch.randint(4, 30, (4, 9), generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def sharded_equals_whole(initial: Path) -> None:
    for name, make in rules(initial).items():
        alone, sharded = pair(initial)
        readings = [stepped(model, make(model)).rules[0].reading for model in (alone, sharded)]
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        cut = whole(sharded)
        for key, tensor in whole(alone).items():
            torch.testing.assert_close(cut[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        torch.testing.assert_close(readings[1], readings[0], rtol=1e-3, atol=1e-5)


def gradients_are_born_projected(initial: Path) -> None:
    """The layers' own backward, sharded or not, and the projection of the whole gradient: one training."""
    finals = []
    for number, model in enumerate((pair(initial)[0], *pair(initial))):
        subspaces = PROTECT.subspaces(model, load_tokenizer(initial), PROMPTS)
        if number:
            project_activations(model, subspaces)
        rule = NullSpace(PROMPTS, PROTECT, site="gradient").bind(model, Host(tokenizer=load_tokenizer(initial)))
        stepped(model, {} if number else {"gradient": rule}, 3)
        finals.append(whole(model))
    for other in finals[1:]:
        for name, tensor in finals[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def processes_share_the_work(initial: Path) -> None:
    """Directions of two processes, each with half of the reference batches, are those of one with all of them."""
    import untaxed.projections._gradients as module

    (alone, _), tokenizer = pair(initial), load_tokenizer(initial)
    given = Orthogonal(SETS).bind(alone, Host(tokenizer=tokenizer))._sets
    given = [module.ReferenceSet(one.name, [*one.batches] * 3, one.loss, one.weight / 3) for one in given]
    ours = module.reference_gradients(alone, given)
    inner = module.processes, module.shared_out, module.summed
    module.processes, module.summed = lambda: (0, 1), lambda value: value
    module.shared_out = lambda batches: [(batch, True) for batch in batches]
    single = module.reference_gradients(alone, given)
    module.processes, module.shared_out, module.summed = inner
    for one, other in zip(ours, single):
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def a_saved_state_goes_on(initial: Path, folder: Path) -> None:
    """Through torch.distributed.checkpoint, in the middle of an interval."""
    for name in ("ogpsa tensor", "nspo"):
        make = rules(initial)[name]
        _, model = pair(initial)
        optimizer = Pipeline(torch.optim.AdamW(model.named_parameters(), lr=0.01), **make(model))
        for step in range(3):
            go(model, optimizer, step)
        weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        checkpoint.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / name)
        for step in range(3, 6):
            go(model, optimizer, step)
        _, other = pair(initial)
        other.load_state_dict(weights)
        again = Pipeline(torch.optim.AdamW(other.named_parameters(), lr=0.01), **make(other))
        go(other, again, 0)  # so that its state has the form that is read
        other.load_state_dict(weights)
        read = {"optimizer": get_optimizer_state_dict(other, again)}
        checkpoint.load(read, checkpoint_id=folder / name)
        set_optimizer_state_dict(other, again, read["optimizer"])
        for step in range(3, 6):
            go(other, again, step)
        ours, theirs = whole(model), whole(other)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def attached(initial: Path, folder: Path, backend: str, method: Any) -> dict[str, torch.Tensor]:
    ours = trainer(initial, folder, backend)
    attach(ours, method)
    ours.train()
    assert isinstance(next(ours.model.parameters()), DTensor) == (backend == "fsdp2")
    return agreed(whole(ours.model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, place = Path(sys.argv[1]), Path(sys.argv[2])
    methods = [
        OGPSA(reference_sets=SETS, refresh_every=2),
        NSPO(prompts=PROMPTS, every=2, threshold="rank", value=10),
    ]
    replicated = [attached(start, place, "ddp", method) for method in methods]
    sharded_equals_whole(start)
    processes_share_the_work(start)
    gradients_are_born_projected(start)
    a_saved_state_goes_on(start, place)
    cut = [attached(start, place, "fsdp2", method) for method in methods]
    for alike, part in zip(replicated, cut, strict=True):
        for name, tensor in alike.items():
            torch.testing.assert_close(part[name], tensor, rtol=1e-3, atol=1e-4)
    dist.destroy_process_group()
