"""The reference of a KL term as methods between steps write it: by the policy's names, in place, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..sites import Host, Weights
from ..weights import check_same, local, reshard
from ._followed import followed

Source = nn.Module | Callable[[], Mapping[str, Tensor]]


def counterparts(policy: nn.Module, reference: nn.Module) -> dict[str, Tensor]:
    """The local part of a reference model's tensors that answer to the policy's trainable ones, a value head apart.

    Raises:
        Unsupported: A tensor is missing there, lies otherwise, is tied in one of the two alone, or is the policy's own.
    """
    reshard(policy)
    reshard(reference)
    theirs = dict(reference.named_parameters())
    found, names = {}, followed(policy).keys()
    for name, parameter in policy.named_parameters():
        if name in names:
            if name not in theirs or local(theirs[name]).shape != local(parameter).shape:
                raise Unsupported(f"the reference model has no tensor that lies as the policy's {name!r} does")
            if theirs[name] is parameter:
                raise Unsupported(f"the reference is the policy itself ({name!r}); give a copy: copy.deepcopy(policy)")
            found[name] = local(theirs[name].detach())
    tied = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    if alone := sorted(tied & theirs.keys() - dict(policy.named_parameters()).keys()):
        raise Unsupported(f"{alone[0]!r} is tied in the policy and not in the reference; tie it in both or in neither")
    return found


def reference_in(host: Host, method: str) -> Callable[[], Mapping[str, Tensor]]:
    """What a host gives of its reference, for a method that cannot work without one."""
    if host.reference is None:
        raise Unsupported(
            f"{method} moves the reference, and this loop shows none; give the state class the reference model, "
            "or between() a Host(reference=…)"
        )
    return host.reference


class Reference:
    """Moves a reference's tensors in place; their objects and dtypes stay.

    Args:
        policy: The model whose trainable parameters the reference answers to.
        source: The reference model, or what gives its tensors by the policy's names; asked anew at every use.
        small_moves: Keep a float32 copy of what is narrower: in bfloat16 a move below the spacing of its numbers would
            be lost. A float32 reference needs none.
    """

    def __init__(self, policy: nn.Module, source: Source, *, small_moves: bool) -> None:
        if isinstance(source, nn.Module):
            model = source
            self._find: Callable[[], Mapping[str, Tensor]] = lambda: counterparts(policy, model)
        elif callable(source):
            self._find = source
        else:
            raise ValueError(
                "the reference must be a model, or a function that gives its tensors by the policy's names, "
                f"got {source!r}"
            )
        narrow = {name: tensor for name, tensor in self._find().items() if small_moves and tensor.dtype.itemsize < 4}
        self._wide = {name: tensor.to(torch.float32, copy=True) for name, tensor in narrow.items()}

    @torch.no_grad()
    def move(self, towards: Weights, share: float) -> None:
        """``reference <- share * towards + (1 - share) * reference``, in float32 or wider; share 1 copies the bits."""
        self.check(towards, of="the policy")
        tensors = self._find()
        exact = [self._wide.get(name, tensor) for name, tensor in tensors.items()]
        values = [towards[name].to(tensor) for name, tensor in zip(tensors, exact, strict=True)]
        if share == 1:
            torch._foreach_copy_(exact, values)
        elif share:
            torch._foreach_lerp_(exact, values, share)
        for name, wide in self._wide.items():
            tensors[name].copy_(wide)

    @torch.no_grad()
    def write(self, values: Weights) -> None:
        """Replaces the reference by other weights, cast to its dtype."""
        self.move(values, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """What a resume needs: the reference's tensors, of narrow ones their float32 copies."""
        return {**self._find(), **self._wide}

    def check(self, values: Weights, *, of: str) -> None:
        """Raises `ValueError` unless tensors have the reference's names and shapes; `of`: whose they are."""
        check_same(values, self._find(), names=(of, "the reference"))

    @torch.no_grad()
    def load(self, saved: Weights) -> None:
        """Takes up what `tensors` gave."""
        self.write(saved)
