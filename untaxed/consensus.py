"""How several deltas of one tensor become one: their weighted sum, or the sum of those that agree with its sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Consensus = Literal["sum", "sign", "sign_unweighted"]


def consensus(terms: Sequence[Tensor], weights: Sequence[float], *, how: Consensus = "sum") -> Tensor:
    r"""Combines deltas of one tensor.

    .. math:: \sum_k w_k x_k\,[\mathrm{sign}(x_k) = s], \qquad
        s = \mathrm{sign}\Big(\sum_k w_k x_k\Big) \text{ for "sign"}

    For two terms "sign" is the paper's Eq. 7: equal signs add, else the one of larger weighted magnitude stands alone,
    and an exact tie gives 0. A zero never blocks another term.

    Args:
        terms: One or more, of one shape.
        weights: One a term, at least 0.
        how: "sum": no election; "sign": elected with the weights; "sign_unweighted": elected without them, 0 counting
            as positive, which is what the released code of online merging does. With a small weight on one term the
            two elections are different methods: without weights the large term decides everywhere.
    Returns:
        A new tensor.
    Raises:
        ValueError: An unknown name, or numbers of terms and weights that differ.
    Example:
        >>> step, delta = torch.tensor([2.0, -2.0]), torch.tensor([3.0, 3.0])
        >>> consensus([step, delta], [0.5, 0.5], how="sign")
        tensor([2.5000, 1.5000])

    Source: Yadav et al. 2023 (TIES), arXiv:2306.01708, section 3; Lu et al. 2024, arXiv:2405.17931, Eq. 3, 5 and 7.
    Differs: TIES divides by the number of terms that agree; here the weights say what a term counts.
    """
    if not terms or len(terms) != len(weights):
        raise ValueError(f"consensus needs one weight a term, got {len(terms)} terms and {len(weights)} weights")
    weighted = [term * weight for term, weight in zip(terms, weights)]
    if how == "sum":
        return _total(weighted)
    if how == "sign":
        elected = torch.sign(_total(weighted))
    elif how == "sign_unweighted":
        elected = torch.where(_total(list(terms)) >= 0, 1.0, -1.0).to(terms[0].dtype)
    else:
        raise ValueError(f"how must be sum, sign or sign_unweighted, got {how!r}")
    agreeing = [
        torch.where(torch.sign(term) == elected, part, torch.zeros_like(part)) for term, part in zip(terms, weighted)
    ]
    return _total(agreeing)


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
