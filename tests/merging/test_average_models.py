"""`average` on tensors, modules and checkpoints, and in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import build_model_dir
from untaxed import average
from untaxed.checkpoints import load_model


def tied(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Module()
    model.first, model.second = nn.Linear(3, 3), nn.Linear(3, 3)
    model.second.weight = model.first.weight
    model.register_buffer("seen", torch.tensor(seed))
    return model


def test_modules_are_averaged_as_their_weights() -> None:
    initial, aligned = tied(0), tied(1)
    found = average(initial, aligned, initial_share=0.3)
    wanted = average(initial.state_dict(), aligned.state_dict(), initial_share=0.3)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(found["first.weight"], torch.lerp(aligned.first.weight, initial.first.weight, 0.3))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_in_place_moves_each_tensor_once_and_keeps_the_objects(share: float) -> None:
    initial, aligned = tied(0), tied(1)
    wanted = average(initial, aligned, initial_share=share)
    before, start = dict(aligned.named_parameters()), {k: v.clone() for k, v in initial.state_dict().items()}
    average(initial, aligned, initial_share=share, in_place=True)
    assert all(torch.equal(value, wanted[name]) for name, value in aligned.state_dict().items())
    assert dict(aligned.named_parameters()) is not before
    assert all(now is before[name] for name, now in aligned.named_parameters())
    assert all(torch.equal(value, start[name]) for name, value in initial.state_dict().items())


def test_checkpoints_are_averaged_on_the_disk(tmp_path: Path) -> None:
    first, second = (build_model_dir(tmp_path / f"m{seed}", seed=seed) for seed in range(2))
    average(first, second, initial_share=0.4, out=tmp_path / "out")
    models = [load_model(path, dtype=torch.float32) for path in (first, second, tmp_path / "out")]
    wanted = average(models[0], models[1], initial_share=0.4)
    for name, value in models[2].state_dict().items():
        assert torch.equal(value, wanted[name])


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "m")
    for given in ({}, {"out": tmp_path / "out", "in_place": True}):
        with pytest.raises(ValueError, match="out=DIRECTORY"):
            average(path, path, initial_share=0.5, **given)
    with pytest.raises(ValueError, match="out=DIRECTORY"):
        average(path, {}, initial_share=0.5, out=tmp_path / "out")
    with pytest.raises(ValueError, match="out=DIRECTORY"):
        average({}, {}, initial_share=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
