"""Best-of-n: of n responses of the initial model, the one with the highest proxy reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from ..method import Method
from ..sites import Context, Site


def best_of_shares(rewards: NDArray[Any], n: int) -> NDArray[np.float64]:
    r"""How probably each of N drawn responses is the best of n that are picked from them without replacement.

    .. math:: w_{(r)} = \binom{r-1}{n-1} \Big/ \binom{N}{n}

    for the response of rank r, the lowest reward having rank 1; responses of equal reward share what their ranks get.
    With them :math:`\sum_i w_i v_i` is an unbiased estimate of what the best of n responses has of a quantity v on
    average, without drawing n responses anew for every n.

    Args:
        rewards: ``(items, N)``, what the choice goes by.
        n: From 1 to N.
    Returns:
        ``(items, N)``, rows adding up to 1.
    Raises:
        ValueError: n is not from 1 to N.
    Example:
        >>> best_of_shares(np.array([[0.1, 0.9, 0.5]]), 2)  # of three pairs two hold the 0.9, one only 0.1 and 0.5
        array([[0.        , 0.66666667, 0.33333333]])

    Source: a U-statistic (Hoeffding 1948), for best-of-n as in Nakano et al. 2021, arXiv:2112.09332.
    Differs: ties are shared; ranks alone would let the estimate depend on the order of the responses.
    """
    items, count = rewards.shape
    if not 1 <= n <= count:
        raise ValueError(f"n must be from 1 to the {count} responses of a prompt, got {n}")
    whole = math.comb(count, n)
    by_rank = np.array([math.comb(rank, n - 1) / whole for rank in range(count)])  # rank from 0
    shares = np.empty((items, count))
    for row, values in enumerate(rewards):
        _, group = np.unique(values, return_inverse=True)
        size = np.bincount(group)
        total = np.add.reduceat(by_rank, np.cumsum(size) - size)
        shares[row] = (total / size)[group]
    return shares


def best_of_kl(n: int) -> float:
    r"""KL from the initial model to best-of-n, in nats a *response*, by the formula.

    .. math:: KL(best\text{-}of\text{-}n\,\|\,initial) \le \log n - \frac{n - 1}{n}

    It is an upper bound for every model and reward, and exact where no two responses tie: the same response drawn
    twice is a tie too, so it is close where a model has many ways to answer, and far above where it has few.

    Example:
        >>> round(best_of_kl(16), 4)
        1.8351

    Source: Stiennon et al. 2020, arXiv:2009.01325, as an equality; Beirami et al. 2024, arXiv:2401.01879,
        which shows that it is a bound, and when it is tight.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class BestOfN(Method):
    """Draws n responses from the initial model and ships the one with the highest proxy reward; trains nothing.

    A reference curve: no alignment of the same KL is known to win more, and it costs n times the decoding. Every n is
    estimated from the same ``samples`` responses a prompt (`best_of_shares`); seeds draw other ones. Selection acts on
    prompts of the alignment task: a question with one right answer is answered by the initial model itself, so
    that abilities are its own and the tax is 0 by construction.

    Args:
        n: Responses of which the best is shipped.
        samples: Responses drawn a prompt, for all n alike: the largest n at least.
    """

    name: ClassVar[str] = "best_of_n"
    title: ClassVar[str] = "Best-of-n"
    source: ClassVar[str] = "Stiennon et al. 2020, arXiv:2009.01325; Beirami et al. 2024, arXiv:2401.01879"
    summary: ClassVar[str] = "reference: the best of n responses of the initial model; n times the decoding"
    acts: ClassVar[frozenset[Site]] = frozenset({"decoding"})
    of_initial: ClassVar[bool] = True

    n: int
    samples: int = 64

    def __post_init__(self) -> None:
        for name in ("n", "samples"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.n > self.samples:
            raise ValueError(f"n must be at most samples, got the best of {self.n} among {self.samples}; raise samples")

    @property
    def decoding_cost(self) -> int:
        return self.n

    @property
    def yardstick(self) -> str:
        return (
            "a reference curve that trains nothing, left out of the verdict: it decodes n times, and its tax is 0 by "
            "construction, since selection acts on the prompts of alignment and initial itself answers the questions"
        )

    def check(self, context: Context) -> None:
        if context.rewards is not None and "proxy" not in context.rewards:
            raise Unsupported(
                "best_of_n ships the response with the highest proxy reward, and none is measured; "
                "give measure.reward a proxy, or leave best_of_n out"
            )
        if context.temperature == 0:
            raise Unsupported(
                "best_of_n draws responses, and at measure.temperature 0 all of them are the same; "
                "raise it, or leave best_of_n out"
            )

    def tell(self) -> str:
        return f"KL at most {best_of_kl(self.n):.3f} nats a response; {self.n} times the decoding"
