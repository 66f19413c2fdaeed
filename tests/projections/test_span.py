"""The mathematics of reference gradients: Gram-Schmidt over lists of tensors, and what is taken out."""

from __future__ import annotations

import pytest
import torch

from untaxed.projections import gram_schmidt, inner_products, removed_coordinates
from untaxed.projections._span import BLOCK, subtract

SHAPES = [(5, 3), (4,), (), (0, 2), (2, 2, 2)]


def vectors(count, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(count)]


def copied(given):
    return [[tensor.clone() for tensor in vector] for vector in given]


@pytest.mark.parametrize("jointly", [True, False])
def test_directions_are_orthonormal_and_span_what_was_given(jointly):
    given = vectors(3)
    span = gram_schmidt(copied(given), jointly=jointly)
    assert not span.zero[[0, 1, 4]].any()
    for i in range(3):
        found = inner_products(span.directions[i], span.directions, jointly=jointly)[:, :3]
        expected = torch.eye(3, dtype=torch.float64)[i]
        rows = range(5) if jointly else (0, 1, 4)  # the others have fewer dimensions than vectors
        assert all(torch.allclose(found[row], expected, atol=1e-6) for row in rows)
        for at, tensor in enumerate(given[i]):  # g_i is the sum of its coordinates times the directions
            again = sum(span.coordinates[at, i, j] * span.directions[j][at] for j in range(3))
            torch.testing.assert_close(again.to(tensor.dtype), tensor, atol=1e-5, rtol=1e-5)


def test_parallel_and_zero_vectors_add_no_direction():
    (first,) = vectors(1)
    twice = [2 * tensor for tensor in first]
    nothing = [torch.zeros_like(tensor) for tensor in first]
    span = gram_schmidt(copied([first, twice, nothing]))
    assert span.dropped[0].tolist() == [False, True, True]
    assert span.zero[0].tolist() == [False, False, True]
    assert not span.directions[1][0].any()
    assert span.coordinates[0, 1, 0] == pytest.approx(2 * first[0].norm().item())


def test_the_tolerance_says_from_which_rest_on_a_vector_counts():
    first, other = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-3])
    assert not gram_schmidt([[first.clone()], [other.clone()]], tolerance=1e-4).dropped.any()
    assert gram_schmidt([[first.clone()], [other.clone()]], tolerance=1e-2).dropped.tolist() == [[False, True]]


def test_nearly_parallel_vectors_still_give_orthogonal_directions():
    torch.manual_seed(0)
    base = torch.randn(3000)
    span = gram_schmidt([[base.clone()], [base + 1e-4 * torch.randn(3000)]])
    assert abs(torch.dot(span.directions[0][0].double(), span.directions[1][0].double())) < 1e-6


def test_inner_products_in_blocks_equal_those_in_float64():
    torch.manual_seed(0)
    a, b = torch.randn(2, BLOCK + 77, 2).unbind(0)
    found = inner_products([a.T], [[b.T]], jointly=False)[0]
    expected = [(a.double() * b.double()).sum(), a.double().square().sum()]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-3)


def test_always_takes_out_the_whole_component():
    span = gram_schmidt(vectors(2), jointly=True)
    (gradient,) = vectors(1, shapes=SHAPES[::1])
    gradient = [tensor + 1 for tensor in gradient]
    products = inner_products(gradient, span.directions, jointly=True)[:, :2]
    subtract(gradient, removed_coordinates(products, span.coordinates, "always"), span.directions)
    assert inner_products(gradient, span.directions, jointly=True)[:, :2].abs().max() < 1e-5


@pytest.mark.parametrize(("gradient", "left"), [([1.0, 2.0], [1.0, 2.0]), ([-1.0, 2.0], [0.0, 2.0])])
def test_conflict_takes_out_only_what_raises_the_reference_loss(gradient, left):
    """A step goes against the gradient, so it raises the reference loss where their inner product is below 0."""
    span = gram_schmidt([[torch.tensor([3.0, 0.0])]])
    vector = [torch.tensor(gradient)]
    products = inner_products(vector, span.directions, jointly=False)[:, :1]
    subtract(vector, removed_coordinates(products, span.coordinates, "conflict"), span.directions)
    assert vector[0].tolist() == pytest.approx(left)


def test_a_conflict_that_a_projection_brings_is_taken_out_too():
    # g·a < 0 and g·b > 0, but g without its part along a goes against b:
    # a = (1, 0), b = (-1, 0.5)/|.|, g = (-1, -1): g·b = (1 - 0.5)/|b| > 0; without a: (0, -1), ·b < 0; both gone: 0
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.5])
    span = gram_schmidt([[a.clone()], [b.clone()]])
    vector = [torch.tensor([-1.0, -1.0])]
    products = inner_products(vector, span.directions, jointly=False)[:, :2]
    subtract(vector, removed_coordinates(products, span.coordinates, "conflict"), span.directions)
    assert vector[0].abs().max() < 1e-6


def test_conflict_leaves_no_conflict_for_any_set_of_references():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        references = [[torch.randn(5, generator=generator)] for _ in range(4)]
        references[3][0].copy_(references[0][0] + references[1][0])  # adds no direction, but may be gone against
        vector = [torch.randn(5, generator=generator)]
        span = gram_schmidt(copied(references))
        products = inner_products(vector, span.directions, jointly=False)[:, :4]
        subtract(vector, removed_coordinates(products, span.coordinates, "conflict"), span.directions)
        assert min(torch.dot(vector[0], one[0]).item() for one in references) > -1e-5
