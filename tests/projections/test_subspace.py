"""Thresholds on a covariance's eigenvalues, and the projection that never forms its projector."""

from __future__ import annotations

import pytest
import torch

from untaxed.projections import protected_subspace
from untaxed.projections._covariance import COLUMNS, add_products

VALUES = torch.tensor([100.0, 40.0, 10.0, 1.0, 1e-2, 1e-4], dtype=torch.float64)  # sum 151.0101


def covariance(values=VALUES):
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize(
    ("threshold", "value", "rank"),
    [
        ("relative", 5e-5, 5),  # 100 · 5e-5 = 5e-3
        ("relative", None, 5),
        ("relative", 0.05, 3),
        ("energy", 0.9, 2),  # 140 of 151 is 0.927
        ("energy", 0.95, 3),  # 150 of 151 is 0.993
        ("energy", 1.0, 6),
        ("multiple_of_min", 10.0, 5),
        ("multiple_of_min", 1e3, 4),
        ("absolute", 2e-2, 4),  # of C / 10 tokens
        ("rank", 2.0, 2),
        ("free_share", 0.5, 3),
    ],
)
def test_each_threshold_protects_what_it_says(threshold, value, rank):
    found = protected_subspace(covariance(), threshold=threshold, value=value, tokens=10)
    assert found.rank == rank
    assert found.basis.shape[1] == min(rank, 6 - rank)


def test_removing_equals_the_projector_whichever_basis_is_kept():
    for rank in range(1, 7):
        found = protected_subspace(covariance(), threshold="rank", value=rank)
        eigenvectors = torch.linalg.eigh(covariance())[1][:, 6 - rank :]
        rows = torch.randn(4, 6, dtype=torch.float64)
        expected = rows - rows @ eigenvectors @ eigenvectors.T
        torch.testing.assert_close(found.remove(rows), expected)
        torch.testing.assert_close(found.remove(found.remove(rows)), found.remove(rows))


def test_a_relative_threshold_needs_no_scale():
    ranks = [protected_subspace(scale * covariance(), threshold="relative").rank for scale in (1e-6, 1.0, 1e6)]
    assert ranks == [5, 5, 5]


def test_bfloat16_sums_would_lose_free_directions():
    """Why the covariance is float32: with bfloat16 sums rounding fills the directions that no input has."""
    torch.manual_seed(0)
    rows = torch.randn(4096, 24) @ torch.randn(24, 64)
    exact = rows.T @ rows
    coarse = sum((part.bfloat16().T @ part.bfloat16()) for part in rows.split(512)).float()
    assert protected_subspace(exact).rank == 24
    assert protected_subspace((coarse + coarse.T) / 2).rank > 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": "largest"}, "threshold must be one of relative, energy"),
        ({"threshold": "rank"}, "'rank' has no usual value"),
        ({"threshold": "rank", "value": 7}, "rank 7 is asked for, and the layer has 6 inputs"),
        ({"threshold": "energy", "value": 1.5}, r"value must be in \(0, 1\]: .* for threshold 'energy', got 1.5"),
        ({"threshold": "relative", "value": float("nan")}, "value must be a finite number, got nan"),
        ({"threshold": "absolute"}, "needs the number of tokens"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        protected_subspace(covariance(), **settings)
    with pytest.raises(ValueError, match="nothing to protect"):
        protected_subspace(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="not finite"):
        protected_subspace(torch.full((3, 3), torch.inf))


@pytest.mark.parametrize("width", [3, COLUMNS, COLUMNS + 5])
def test_the_upper_triangle_in_blocks_is_the_whole_product(width):
    torch.manual_seed(0)
    rows = torch.randn(20, width)
    for dtype in (torch.float32, torch.float64):
        sums = torch.zeros(width, width, dtype=dtype)
        for part in rows.split(7):
            add_products(sums, part)
        whole = sums.triu() + sums.triu(1).T
        torch.testing.assert_close(whole, (rows.T @ rows).to(dtype), rtol=1e-5, atol=1e-5)
