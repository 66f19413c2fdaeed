"""The estimator of the best of n, against counting every choice of n by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from untaxed.decoding import BestOfN, best_of_kl, best_of_shares
from untaxed.errors import Unsupported
from untaxed.sites import Context


def counted(rewards: np.ndarray, n: int) -> np.ndarray:
    """Over all choices of n of the responses: how often each is shipped, a tie drawn by lot."""
    shares = np.zeros_like(rewards)
    for row, values in enumerate(rewards):
        choices = list(itertools.combinations(range(len(values)), n))
        for chosen in choices:
            best = [at for at in chosen if values[at] == max(values[list(chosen)])]
            shares[row, best] += 1 / len(best) / len(choices)
    return shares


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_shares_are_those_of_counting(n: int) -> None:
    generator = np.random.default_rng(0)
    rewards = np.concatenate([generator.normal(size=(3, 6)), generator.integers(0, 3, (4, 6)), np.zeros((1, 6))])
    np.testing.assert_allclose(best_of_shares(rewards, n), counted(rewards, n), atol=1e-12)


def test_one_is_the_mean_and_all_is_the_best() -> None:
    rewards = np.random.default_rng(1).normal(size=(4, 9))
    np.testing.assert_allclose(best_of_shares(rewards, 1), 1 / 9)
    assert (best_of_shares(rewards, 9).argmax(1) == rewards.argmax(1)).all()
    assert (best_of_shares(rewards, 9).max(1) == 1).all()


def test_the_order_of_the_responses_does_not_matter() -> None:
    rewards = np.random.default_rng(2).integers(0, 4, (1, 12)).astype(float)
    order = np.random.default_rng(3).permutation(12)
    np.testing.assert_array_equal(best_of_shares(rewards, 4)[:, order], best_of_shares(rewards[:, order], 4))


def test_many_responses_do_not_overflow() -> None:
    shares = best_of_shares(np.arange(3000.0)[None], 512)
    assert shares.sum() == pytest.approx(1)
    assert np.isfinite(shares).all()


def test_the_estimate_is_unbiased() -> None:
    """The best of 3 uniform numbers is 3/4 on average: with 20,000 prompts of 8 draws the error is about 0.001."""
    rewards = np.random.default_rng(4).uniform(size=(20000, 8))
    assert (best_of_shares(rewards, 3) * rewards).sum(1).mean() == pytest.approx(0.75, abs=0.004)


def test_kl_is_exact_without_ties_and_a_bound_with_them() -> None:
    """On a known distribution: its best-of-n distribution by F^n, and the KL between the two."""
    for chances in ([0.25] * 4, [1e-3] * 1000):
        below = np.concatenate([[0.0], np.cumsum(chances)])
        for n in (1, 2, 8):
            best = np.diff(below**n)  # one reward a response, rising
            kl = sum(p * math.log(p / q) for p, q in zip(best, chances) if p > 0)
            assert kl <= best_of_kl(n) + 1e-9
            if len(chances) == 1000:
                assert kl == pytest.approx(best_of_kl(n), abs=0.01)
    assert best_of_kl(1) == 0.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be from 1 to the 3 responses of a prompt, got 4"):
        best_of_shares(np.zeros((1, 3)), 4)
    with pytest.raises(ValueError, match="n must be at most samples, got the best of 65 among 64; raise samples"):
        BestOfN(65)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        BestOfN(0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_kl(0)
    BestOfN(2).check(Context("dpo", 10, rewards=("proxy",), temperature=1.0))
    with pytest.raises(Unsupported, match=r"highest proxy reward, and none is measured; give measure\.reward a proxy"):
        BestOfN(2).check(Context("dpo", 10, rewards=("gold",)))
    with pytest.raises(Unsupported, match=r"at measure\.temperature 0 all of them are the same"):
        BestOfN(2).check(Context("dpo", 10, temperature=0.0))
