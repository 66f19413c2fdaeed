"""Where the weights lie that methods between steps follow, and that a model gets its own back."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import build_model_dir
from torch import Tensor, nn

from untaxed.callbacks import BEMAState, ElasticResetState, SyncReferenceState, WeightAverage
from untaxed.checkpoints import load_model
from untaxed.errors import Unsupported
from untaxed.weights import same, trainable


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def move(model: nn.Module) -> None:
    """Stands for `optimizer.step()`."""
    with torch.no_grad():
        for tensor in trainable(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).to(tensor))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "block",
    [
        lambda model: model.requires_grad_(False),
        lambda model: model.weight.requires_grad_(False),
        lambda model: model.double().float(),  # other storage
    ],
    ids=["frozen", "frozen in part", "moved"],
)
def test_a_model_gets_its_own_weights_back_whatever_becomes_of_it(block: Callable[[Any], Any]) -> None:
    model = layer()
    average = WeightAverage(model, decay=0.5)
    move(model)
    own = values(model)
    with average.swapped_in(model):
        assert not same(values(model), own)
        block(model)
    assert same(values(model), own)


def test_so_does_an_adapter_that_another_takes_the_place_of(tmp_path: Any) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(build_model_dir(tmp_path)), config)
    model.add_adapter("other", config)
    average = WeightAverage(model, decay=0.5)
    move(model)
    own = values(model)
    with average.swapped_in(model):
        model.set_adapter("other")
    assert same(values(model), own)


STATES: list[Callable[[nn.Module], Any]] = [
    lambda model: WeightAverage(model, decay=0.5),
    lambda model: ElasticResetState(model, decay=0.5, reset_every=2),
    lambda model: SyncReferenceState(model, layer()),
    lambda model: BEMAState(model),
]


@pytest.mark.parametrize("build", STATES)
def test_weights_that_deepspeed_keeps_elsewhere_are_refused(build: Callable[[nn.Module], Any]) -> None:
    model = layer()
    for number, parameter in enumerate(model.parameters()):  # as zero.Init leaves them
        parameter.ds_id, parameter.ds_shape = number, parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    with pytest.raises(Unsupported, match=r"parameters of Linear are not in place: DeepSpeed's ZeRO-3.* FSDP2"):
        build(model)


FSDP1 = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from untaxed import WeightAverage
from untaxed.errors import Unsupported
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for whole in (False, True):
    model = FSDP(torch.nn.Linear(3, 2), use_orig_params=whole, device_id=torch.device("cpu"))
    for part in (model,) if whole else (model, model.module):
        try:
            WeightAverage(part, decay=0.5)
        except Unsupported as error:
            assert "are not in place: FSDP1 (FullyShardedDataParallel) flattens them; shard with FSDP2" in str(error)
        else:
            raise SystemExit(f"{type(part).__name__} was followed")
"""


def test_weights_that_fsdp1_flattens_are_refused() -> None:
    done = subprocess.run([sys.executable, "-c", FSDP1], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_a_float64_model_is_averaged_in_float64() -> None:
    model, behind = layer(torch.float64), layer(torch.float64)
    reset = ElasticResetState(model, decay=0.0, reset_every=1)
    bema = BEMAState(behind, reference=copy.deepcopy(behind), update_every=1, average_power=0.0, multiplier=1e-300)
    move(model)
    own = values(model)
    assert reset.step()
    assert same(values(model), own)  # the average at decay 0 is the policy, to the bit
    for tensors in (reset.state_dict()["average"], bema.state_dict()["average"], bema.state_dict()["initial"]):
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}
    assert same(bema.variant(), values(behind))
    in_parts = WeightAverage(model, decay=0.0)
    in_parts._tensors = {name: tensor + 1 for name, tensor in own.items()}
    with torch.no_grad():
        model.weight.data = model.weight.data.float()  # of another dtype than the average: taken in in parts
    in_parts.update()
    assert torch.equal(in_parts.tensors()["weight"], own["weight"].float().double())


def test_a_variant_is_not_the_live_weights() -> None:
    model = layer()
    variant = BEMAState(model, start_after=10).variant()
    kept = {name: tensor.clone() for name, tensor in variant.items()}
    move(model)
    assert same(variant, kept)
