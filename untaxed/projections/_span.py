"""The span of a few directions: an orthonormal basis of them, and what of a vector lies in it.

A vector here is a list of tensors, one a parameter. `jointly` says what an inner product is: one number for the whole
list, or one for every tensor by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Vector = Sequence[Tensor]
Sum = Callable[[Tensor], Tensor]  # over the processes that hold the parts of a tensor
When = Literal["always", "conflict"]

BLOCK = 1 << 16  # entries whose products are summed in float32 before the sum goes on in float64


@dataclass(frozen=True)
class Span:
    """Orthonormal directions that span the given vectors.

    Attributes:
        directions: As many vectors as were given; where one adds nothing its tensor is zero.
        coordinates: ``(tensors, vectors, vectors)`` float64 on the CPU: the i-th vector's inner product with the j-th
            direction. With `jointly` the rows of all tensors are equal.
        dropped: ``(tensors, vectors)``: where a vector adds no direction.
        zero: ``(tensors, vectors)``: where it is zero.
    """

    directions: list[list[Tensor]]
    coordinates: Tensor
    dropped: Tensor
    zero: Tensor


def inner_products(vector: Vector, others: Sequence[Vector], *, jointly: bool, reduce: Sum | None = None) -> Tensor:
    """The inner products of a vector with several others, and with itself.

    Returns:
        ``(tensors, others + 1)`` float64 on the CPU, the squared norm last.
    """
    rows = [_products(value, [other[at] for other in others]) for at, value in enumerate(vector)]
    found = torch.stack(rows).reshape(len(vector), len(others) + 1)
    if reduce is not None:
        found = reduce(found)
    found = found.cpu()
    return found.sum(0, keepdim=True).expand(len(vector), -1).clone() if jointly else found


def gram_schmidt(
    vectors: Sequence[Vector], *, tolerance: float = 1e-6, jointly: bool = False, reduce: Sum | None = None
) -> Span:
    r"""Makes vectors orthonormal, one after the other.

    .. math:: u_i \propto g_i - \sum_{j<i} \langle g_i, u_j\rangle u_j

    What is left of a vector is made orthogonal twice, since rounding leaves a part of the others in a small rest.

    Args:
        vectors: At least one; float32 or wider. They are written to and become the directions.
        tolerance: A vector adds a direction where more than this share of its norm is left.
        jointly: One basis of the whole vectors in place of one a tensor.
        reduce: Sums over processes, where the tensors are parts of larger ones.
    """
    tensors, count = len(vectors[0]), len(vectors)
    coordinates = torch.zeros(tensors, count, count, dtype=torch.float64)
    dropped, zero = torch.zeros(2, tensors, count, dtype=torch.bool)
    for at, vector in enumerate(vectors):
        norm = None
        for _ in range(2):
            products = inner_products(vector, vectors[:at], jointly=jointly, reduce=reduce)
            norm = products[:, -1].sqrt() if norm is None else norm
            coordinates[:, at, :at] += products[:, :-1]
            subtract(vector, products[:, :-1], vectors[:at])
        left = inner_products(vector, [], jointly=jointly, reduce=reduce)[:, -1].sqrt()
        assert norm is not None
        zero[:, at] = norm == 0
        dropped[:, at] = left <= tolerance * norm
        coordinates[:, at, at] = torch.where(dropped[:, at], 0.0, left)
        for value, length, gone in zip(vector, left.tolist(), dropped[:, at].tolist()):
            value.zero_() if gone else value.div_(length)
    return Span([list(vector) for vector in vectors], coordinates, dropped, zero)


def removed_coordinates(products: Tensor, coordinates: Tensor, when: When) -> Tensor:
    r"""What is to be taken away of a vector, in the coordinates of the directions.

    "always": all of it that lies in the span, :math:`U^\top g`. "conflict": its part in the span of those given vectors
    :math:`g_i` with :math:`\langle g, g_i\rangle < 0`; as that may turn it against others, these are added until none
    is left.

    Args:
        products: ``(tensors, vectors)``: the vector's inner products with the directions.
        coordinates: Of the span.
        when: "always" or "conflict".
    """
    if when == "always":
        return products
    lengths = coordinates.norm(dim=-1, keepdim=True)
    units = coordinates / lengths.where(lengths > 0, 1.0)
    small = 1e-9 * products.norm(dim=-1, keepdim=True)
    against = torch.zeros(products.shape, dtype=torch.bool)
    removed = torch.zeros_like(products)
    for _ in range(coordinates.shape[1]):
        now = torch.einsum("tij,tj->ti", units, products - removed) < -small
        if not now.any():
            break
        against |= now
        chosen = units * against.unsqueeze(-1)  # (tensors, vectors, directions), zero rows where there is no conflict
        inverse = torch.linalg.pinv(chosen @ chosen.mT, hermitian=True, rtol=1e-10)
        removed = torch.einsum("tij,tik,tkl,tl->tj", chosen, inverse, chosen, products)
    return removed


def subtract(vector: Vector, amounts: Tensor, directions: Sequence[Vector]) -> None:
    """Takes ``amounts`` ``(tensors, directions)`` of the directions away from a vector, in place."""
    for at, (value, row) in enumerate(zip(vector, amounts.tolist())):
        given = [(direction[at], amount) for direction, amount in zip(directions, row) if amount]
        parts = [value, *(direction for direction, _ in given)]
        for own, *others in _blocks(parts) if given else ():
            for other, (_, amount) in zip(others, given):
                own.sub_(other, alpha=amount)


def _products(value: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Inner products of one tensor: blockwise, so that what is read once serves them all and sums stay exact."""
    if value.device.type != "cpu":
        flat = value.reshape(-1)
        return torch.stack([torch.dot(flat, other.reshape(-1)) for other in (*others, value)]).double()
    sums = [0.0] * (len(others) + 1)
    for own, *rest in _blocks([value, *others]):
        for at, other in enumerate((*rest, own)):
            sums[at] += torch.dot(own, other).item()
    return torch.tensor(sums, dtype=torch.float64)


def _blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Flat tensors cut alike: on a CPU into blocks that stay in its cache, elsewhere whole."""
    size = BLOCK if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    flat = [tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1) for tensor in tensors]
    return zip(*(tensor.split(size) for tensor in flat), strict=True)
