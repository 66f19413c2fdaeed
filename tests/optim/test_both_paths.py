"""The fast optimizers and `Pipeline` around torch's AdamW are two ways of one method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from untaxed.optim import MergeUpdate, Merging, OnDAREAdamW, OnTIESAdamW, Pipeline

SHAPES = {"matrix": (60, 41), "vector": (30,), "scalar": (), "empty": (0, 2)}
ADAM: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.1}


def normal(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


SETTINGS: list[dict[str, Any]] = [
    {"density": 0.1, "merge_weight": 0.01},
    {"density": 0.1, "merge_weight": 0.01, "rescale": "inverse", "delta_mask": "once", "clamp": 0.5},
    {"density": 0.3, "merge_weight": 0.2, "merge_every": 4},
    {"density": 0.5, "merge_weight": 0.1, "pull": "anchor", "anchor_at": 0.5},
    {"density": 0.5, "merge_weight": 0.1, "push_every": 3, "seed": 5},
    {"density": 0.2, "merge_weight": 0.0},
]


@pytest.mark.parametrize("cls", [OnDAREAdamW, OnTIESAdamW])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_paths_agree(cls: type, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """In float32 the update is known to an ulp of the weight only, after which magnitudes may choose otherwise."""
    if cls is OnTIESAdamW and dtype == torch.float32:
        pytest.skip("entries at the threshold differ by rounding")
    fast, general = ({n: nn.Parameter(t) for n, t in normal(0, dtype).items()} for _ in range(2))
    delta = normal(1, torch.float32)
    one = cls(fast.items(), **ADAM, delta=delta, **settings)
    merging = Merging(**{key: one.param_groups[0][key] for key in Merging.__dataclass_fields__})
    base = torch.optim.AdamW(general.items(), **ADAM, foreach=False)
    other = Pipeline(base, update=MergeUpdate(merging, delta))
    for step in range(60):
        gradients = normal(100 + step, dtype)
        lr = 0.0 if step in (0, 7) else ADAM["lr"]
        for weights, optimizer in ((fast, one), (general, other)):
            optimizer.param_groups[0]["lr"] = lr
            for name, gradient in gradients.items():
                weights[name].grad = gradient.clone()
            optimizer.step()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for name in SHAPES:
            torch.testing.assert_close(fast[name], general[name], rtol=0, atol=tolerance, msg=f"{name} at step {step}")


def test_what_wrappers_put_into_names_changes_no_mask_of_either_path() -> None:
    def moved(prefix: str, fast: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.zeros(500))
        named, delta = [(f"{prefix}w", weight)], {"w": torch.ones(500)}
        rule = MergeUpdate(Merging(0.5, 0.5), delta)
        optimizer: torch.optim.Optimizer
        if fast:
            optimizer = OnDAREAdamW(named, lr=0.1, delta=delta, density=0.5, merge_weight=0.5)
        else:
            optimizer = Pipeline(torch.optim.AdamW(named, lr=0.1, weight_decay=0.0), update=rule)
        weight.grad = torch.ones(500)
        optimizer.step()
        return weight.detach()

    for fast in (True, False):
        assert torch.equal(moved("", fast), moved("module._orig_mod.", fast))
    assert torch.equal(moved("", True) != 0, moved("module.", False) != 0)
