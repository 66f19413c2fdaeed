"""The drift meter as a method: attached to a trainer beside those that change weights, it changes none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..errors import Unsupported
from ..method import ALONE, Between, Context, Host, Method, Site
from ._drift_state import DriftMeterState, NonFinite, check_settings
from ._guards import Guard, check_guards


@dataclass(frozen=True)
class DriftMeter(Method):
    """Measures every few steps how far the policy is from its initial model, and lets guards act on it.

    It changes no weights. Its values go to the trainer's log as ``drift/forward_kl``, ``drift/entropy``,
    ``drift/length``, ``drift/distinct_1`` and ``drift/distinct_2``, and other methods read them. `DriftMeterState` says
    what they are and what they cost.

    Args:
        prompts: Texts, or conversations; always the same ones, and none that you report results on.
        every: Optimizer steps between readings.
        samples: Samples a prompt.
        max_new_tokens: Most tokens of a sample.
        temperature: At which samples are drawn.
        seed: Of the draws.
        initial: What drift is measured from: a model or the directory of one, needed only while training begins; None:
            the policy as training begins, an adapter included.
        guards: What is done when a value crosses a limit.
        non_finite: What is done when weights or logits are not finite: ``raise`` or ``stop``.
    """

    name: ClassVar[str] = "drift_meter"
    title: ClassVar[str] = "Drift meter"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "measures the distance from the initial model while it trains; guards act on it"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})
    watches: ClassVar[bool] = True

    prompts: Sequence[Any]
    every: int = 20
    samples: int = 1
    max_new_tokens: int = 32
    temperature: float = 1.0
    seed: int = 0
    initial: Any = None
    guards: Sequence[Guard] = ()
    non_finite: NonFinite = "raise"

    def __post_init__(self) -> None:
        check_settings(
            self.prompts,
            self.every,
            self.samples,
            self.max_new_tokens,
            self.temperature,
            self.non_finite,
            self.seed,
        )
        check_guards(self.guards)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "guards", tuple(self.guards))

    @property
    def asks_reset(self) -> bool:
        """True when a guard asks the method that resets, so that one has to be attached."""
        return any(guard.do == "reset" for guard in self.guards)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values: of the prompts their number and a digest, of a model that there is one."""
        digest = hashlib.sha256(json.dumps(self.prompts, sort_keys=True, default=str).encode()).hexdigest()
        a_model = self.initial is not None and not isinstance(self.initial, str | Path)
        return {
            "prompts": f"{len(self.prompts)}, sha256 {digest[:16]}",
            "every": self.every,
            "samples": self.samples,
            "max_new_tokens": self.max_new_tokens,
            "temperature": float(self.temperature),
            "seed": self.seed,
            "initial": "a model" if a_model else self.initial and str(self.initial),
            "guards": [guard.settings() for guard in self.guards],
            "non_finite": self.non_finite,
        }

    def check(self, context: Context) -> None:
        if context.max_steps is not None and self.every > context.max_steps:
            raise Unsupported(
                f"drift_meter would never measure: every is {self.every}, training has {context.max_steps} steps; "
                "lower every"
            )

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return DriftMeterState(
            model,
            self.initial,
            host.tokenizer,
            self.prompts,
            every=self.every,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            guards=self.guards,
            non_finite=self.non_finite,
            host=host,
        )
