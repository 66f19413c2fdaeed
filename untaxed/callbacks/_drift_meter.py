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
from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from ._drift_settings import NonFinite, check_prompts, check_settings, measures
from ._drift_state import DriftMeterState
from ._guards import Guard, check_guards
from ._initial_samples import that_fit


@dataclass(frozen=True)
class DriftMeter(Method):
    """Measures every few steps how far the policy is from its initial model, and lets guards act on it.

    It changes no weights. Its values go to the trainer's log as ``drift/forward_kl``, ``drift/entropy``,
    ``drift/length``, ``drift/distinct_1``, ``drift/distinct_2`` and ``drift/tokens``, those on general prompts as
    ``drift/general_forward_kl`` and so on, and other methods read them. `DriftMeterState` says what they are and what
    they cost.

    Args:
        prompts: Texts, or conversations; always the same ones, and none that you report results on. None: the trainer's
            held-out ones, at most 64 of its ``eval_dataset`` without those that it trains on.
        general_prompts: A second set, of what the policy is not aligned on, measured as the first one is.
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

    prompts: Sequence[Any] | None = None
    every: int = 20
    samples: int = 1
    max_new_tokens: int = 32
    temperature: float = 1.0
    seed: int = 0
    initial: Any = None
    guards: Sequence[Guard] = ()
    non_finite: NonFinite = "raise"
    general_prompts: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        check_settings(self.every, self.samples, self.max_new_tokens, self.temperature, self.non_finite, self.seed)
        for name, kind in (("prompts", "prompt"), ("general_prompts", "general prompt")):
            if (given := getattr(self, name)) is not None:
                check_prompts(given, kind)
                object.__setattr__(self, name, tuple(given))
        check_guards(self.guards, self.measures)
        object.__setattr__(self, "guards", tuple(self.guards))

    @property
    def measures(self) -> Sequence[str]:
        """What is read, and may have limits."""
        return measures(self.general_prompts)

    @property
    def asks_held_out(self) -> bool:
        """True when the trainer's held-out prompts are measured on."""
        return self.prompts is None

    @property
    def asks_reset(self) -> bool:
        """True when a guard asks the method that resets, so that one has to be attached."""
        return any(guard.do == "reset" for guard in self.guards)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values: of prompts their number and a digest, of a model that there is one."""
        general = {} if self.general_prompts is None else {"general_prompts": _told(self.general_prompts)}
        a_model = self.initial is not None and not isinstance(self.initial, str | Path)
        return {
            "prompts": "held out" if self.prompts is None else _told(self.prompts),
            **general,
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
            self._held_out(model, host) if self.prompts is None else self.prompts,
            general_prompts=self.general_prompts,
            every=self.every,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            guards=self.guards,
            non_finite=self.non_finite,
            host=host,
        )

    def _held_out(self, model: nn.Module, host: Host) -> Sequence[Any]:
        if host.held_out is None:
            raise Unsupported(
                "drift_meter has no prompts, and the loop around offers none that are held out: give "
                "DriftMeter(prompts=[…]) or Host(held_out=…)"
            )
        return that_fit(model, host.tokenizer, host.held_out(), self.max_new_tokens)


def _told(prompts: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{len(prompts)}, sha256 {digest[:16]}"
