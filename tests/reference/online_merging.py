"""Online merging straight from the paper (arXiv 2405.17931), Algorithms 1 and 2, one number after the other.

Python floats (float64), explicit loops, no torch. Masks are injected: lists of 0 and 1, for the update and the delta.
"""

from __future__ import annotations

from collections.abc import Callable

Vector = list[float]
Masks = Callable[[int, Vector, str], Vector]  # (step, values, "update" or "delta") -> 0 or 1 an entry


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def plain_sum(a: float, b: float) -> float:
    """Eq. 3."""
    return a + b


def by_sign(a: float, b: float) -> float:
    """Eq. 7."""
    if sign(a) == sign(b):
        return a + b
    return a * (abs(a) >= abs(b)) + b * (abs(b) >= abs(a))


class OnlineMerging:
    """One parameter. `propose` is the optimizer of the algorithm box: gradient and weights in, Delta out.

    Args:
        p: The weights at the start, theta_r.
        tau: theta_r - theta_b.
        alpha: The merging weight.
        K: The gap between merges; 1 is Algorithm 1.
    """

    def __init__(
        self, p: Vector, tau: Vector, *, alpha: float, K: int, propose: Callable, masks: Masks, join: Callable
    ):
        self.theta, self.tau, self.alpha, self.K = list(p), tau, alpha, K
        self.propose, self.masks, self.join = propose, masks, join
        self.cache = [0.0] * len(p)
        self.t = 0

    def step(self, g: Vector) -> None:
        self.t += 1
        D = self.propose(g, self.theta)
        if self.t % self.K:
            for i in range(len(D)):
                self.cache[i] += D[i]
                self.theta[i] += D[i]
            return
        for i in range(len(D)):
            self.theta[i] -= self.cache[i]
            D[i] += self.cache[i]
            self.cache[i] = 0.0
        keep_D, keep_tau = self.masks(self.t, D, "update"), self.masks(self.t, self.tau, "delta")
        for i in range(len(D)):
            a = (1 - self.alpha) * D[i] * keep_D[i]
            b = self.alpha * self.tau[i] * keep_tau[i]
            self.theta[i] += self.join(a, b)


class Adam:
    """Adam with bias correction, epsilon outside the root, decay inside the update: torch's AdamW."""

    def __init__(self, n: int, *, lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, decay: float = 0.0):
        self.lr, self.b1, self.b2, self.eps, self.decay = lr, b1, b2, eps, decay
        self.m, self.v, self.t = [0.0] * n, [0.0] * n, 0

    def __call__(self, g: Vector, theta: Vector) -> Vector:
        self.t += 1
        D = []
        for i in range(len(g)):
            self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g[i]
            self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * g[i] ** 2
            m, v = self.m[i] / (1 - self.b1**self.t), self.v[i] / (1 - self.b2**self.t)
            D.append(-self.lr * self.decay * theta[i] - self.lr * m / (v**0.5 + self.eps))
        return D


class Descent:
    """SGD with momentum as torch has it."""

    def __init__(self, n: int, *, lr: float, momentum: float = 0.0):
        self.lr, self.momentum, self.m = lr, momentum, [0.0] * n

    def __call__(self, g: Vector, theta: Vector) -> Vector:
        self.m = [self.momentum * m + x for m, x in zip(self.m, g)]
        return [-self.lr * m for m in self.m]


def unrelaxed(
    theta: Vector, D: Vector, pretrained: Vector, tau: Vector, alpha: float, keep_D: Vector, keep_tau: Vector
):
    """Eq. 1 with the sum: theta_b + (1 - alpha) F(theta - theta_b + D) + alpha F(tau)."""
    return [
        b + (1 - alpha) * k * (x - b + d) + alpha * h * t
        for x, d, b, t, k, h in zip(theta, D, pretrained, tau, keep_D, keep_tau)
    ]


def largest(values: Vector, count: int) -> Vector:
    """1 for the `count` largest magnitudes (no ties), else 0."""
    limit = sorted((abs(x) for x in values), reverse=True)[count - 1]
    return [float(abs(x) >= limit) for x in values]
