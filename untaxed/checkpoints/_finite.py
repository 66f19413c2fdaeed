"""Whether the weights of a directory are numbers: a shard may be whole and hold the weights of a run that diverged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._lazy import LazyWeights


def check_finite(path: str | Path) -> None:
    """Reads every tensor of a model directory once, where it lies.

    Raises:
        CheckpointError: The directory cannot be used, or a tensor holds NaN or infinity; the first is named.
    """
    weights = LazyWeights(path)
    broken = [name for name, dtype in weights.dtypes.items() if dtype is not None and not finite(weights.tensor(name))]
    if broken:
        raise CheckpointError(
            f"the weights of {path} are not finite ({broken[0]!r}; {len(broken)} of {len(weights.entries)} tensors):"
            " its training diverged, or the file is damaged; give an earlier checkpoint or copy it again"
        )


def finite(tensor: Tensor) -> bool:
    """True unless a floating-point tensor holds NaN or infinity; one pass, no second tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    ends = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())  # both are NaN where any entry is
    return bool(torch.isfinite(torch.stack(list(ends))).all())
