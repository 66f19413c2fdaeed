"""A KL coefficient that follows a target."""

from __future__ import annotations

from ..errors import Unsupported
from ..sites import Host


class AdaptiveBeta:
    r"""Raises the KL coefficient where the KL is above its target, and lowers it where it is below.

    .. math:: \beta \leftarrow \beta\,(1 + 0.1\,\mathrm{clip}(KL / target - 1, -0.2, 0.2))

    once for every step whose KL the algorithm measures, in the unit in which it does.

    Raises:
        Unsupported: There is no KL term with a beta, or beta is 0.

    Source: Ziegler et al. 2019, arXiv:1909.08593; with these constants in the code of Noukhovitch et al. 2023,
    arXiv:2312.07551.
    """

    def __init__(self, host: Host, target: float) -> None:
        if host.kl is None or host.beta is None:
            raise Unsupported("kl_target needs an algorithm that measures its KL and has a beta: rloo or grpo")
        if host.beta.get() == 0:
            raise Unsupported("kl_target multiplies beta, and beta is 0, which stays 0; set beta above 0")
        self._kl, self._beta, self._target = host.kl, host.beta, target

    def step(self) -> None:
        """After an optimizer step; changes nothing where no new KL was measured."""
        if (kl := self._kl()) is not None:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            self._beta.set(self._beta.get() * (1 + 0.1 * error))

    @property
    def beta(self) -> float:
        """The coefficient as it is now."""
        return self._beta.get()

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta.set(value)
