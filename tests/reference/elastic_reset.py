"""Elastic Reset as its algorithm box has it, one number at a time: slow, plain, and stepped beside the fast one.

Source: Noukhovitch et al. 2023, arXiv:2312.07551.
"""

from __future__ import annotations


class SlowElasticReset:
    """State: the policy is given from outside; the average and the initial policy are kept here, as lists of floats."""

    def __init__(self, policy: list[float], decay: float, reset_every: int, update_every: int) -> None:
        self.initial = list(policy)
        self.average = list(policy)
        self.decay = decay
        self.reset_every = reset_every
        self.update_every = update_every
        self.t = 0

    def after_step(self, policy: list[float]) -> list[float]:
        """One iteration is over; returns the policy to go on with."""
        self.t += 1
        if self.t % self.update_every == 0:
            for i in range(len(policy)):
                self.average[i] = self.decay * self.average[i] + (1 - self.decay) * policy[i]
        if self.t % self.reset_every == 0:
            policy = list(self.average)
            self.average = list(self.initial)
        return policy
