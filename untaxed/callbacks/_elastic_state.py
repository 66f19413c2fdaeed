"""Elastic Reset at work: the average, the initial weights and the clock of one policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..sites import ALONE, Host
from ..weights import check_same, same
from ._adaptive import AdaptiveBeta
from ._average import WeightAverage
from ._cycle import Cycle
from ._elastic_reset import ElasticReset
from ._followed import followed, overwrite, restart, snapshot_of
from ._moments import Moments
from ._state import COUNT, TENSORS, check_state

STATE = {
    "average": TENSORS,
    "initial": TENSORS,
    "moments": TENSORS,
    "steps_since_reset": COUNT,
    "resets": COUNT,
    "average_steps": COUNT,
    "read_at": COUNT,
    "asked": COUNT,
}


class ElasticResetState:
    r"""Elastic Reset for a plain PyTorch loop: call `step()` after every `optimizer.step()`.

    .. math::
        \bar\theta &\leftarrow \eta\,\bar\theta + (1 - \eta)\,\theta \\
        \theta &\leftarrow \bar\theta,\quad \text{then } \bar\theta \leftarrow \theta_0

    The first line every ``update_every`` steps, the second every ``reset_every`` steps, in this order.

    Schedules, reward models and frozen parameters are left alone, the optimizer's state too unless ``moments`` says
    otherwise, and parameters are written in place. Cost: two float32 copies of the trainable parameters (for LoRA: of
    the adapters); one with ``target="initial"`` or ``reset_average=False``, or where the KL term's reference is the
    snapshot.

    Args:
        model: The policy at its initial weights; build this after sharding or moving it.
        rule: The settings; or give them by name, see `ElasticReset`.
        host: The training around the policy, where the settings need it: the optimizer, the reference, the drift meter.
            An optimizer that merges every few steps, or keeps float32 masters, always: else it undoes the resets.
    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> reset = ElasticResetState(model, decay=0.5, reset_every=1)
        >>> _ = nn.init.ones_(model.weight)  # stands for optimizer.step()
        >>> reset.step(), model.weight.item()
        (True, 0.5)

    Source: Noukhovitch, Lavoie, Strub, Courville 2023, arXiv:2312.07551.
    Differs: the authors' code updates the average once an iteration of rollouts or once an inner epoch; here the unit
    is the optimizer step and `update_every` says how many. Their IMDB code also resets after the first iteration
    (``skip_first=False``), and takes the average as KL reference (``reference="average"``).
    """

    def __init__(
        self, model: nn.Module, rule: ElasticReset | None = None, *, host: Host = ALONE, **settings: Any
    ) -> None:
        if rule is not None and (settings or not isinstance(rule, ElasticReset)):
            given = f"{rule!r} and {', '.join(settings)}" if settings else repr(rule)
            raise ValueError(f"give the settings as one ElasticReset(…), or by name, got {given}")
        rule = ElasticReset(**settings) if rule is None else rule
        if rule.reset_when and host.drift is None:
            raise Unsupported("reset_when needs a drift meter beside it: attach(trainer, DriftMeter(…), …)")
        self._rule = rule
        self._model = model
        self._optimizer = host.optimizer
        self._lent_wrongly = False
        self._waits = False  # a changed average that the reference does not show yet
        self._initial = self._snapshot(host) if rule.keeps_initial else {}
        self._average: WeightAverage | None = None
        if rule.target == "average":
            self._average = WeightAverage(
                model,
                decay=rule.decay,
                half_life=rule.half_life,
                update_every=rule.update_every,
                exclude=rule.exclude,
                device=rule.device,
            )
        self._cycle = Cycle(
            rule.reset_every,
            update_every=rule.update_every,
            lengthen=rule.lengthen,
            skip_first=rule.skip_first,
            reset_when=rule.reset_when,
            readings=host.drift,
        )
        # since the average was last reset
        self._average_steps = 0 if rule.skip_first or rule.reset_every is None else rule.reset_every - rule.update_every
        averaged = self._average.decay if self._average and rule.moments == "averaged" else None
        kept = rule.moments == "kept"
        self._moments = None if kept else Moments(host.optimizer, model, rule.exclude, averaged)
        self._adaptive = None if rule.kl_target is None else AdaptiveBeta(host, rule.kl_target)
        self._reference = host.reference if rule.reference == "average" else None
        if rule.reference == "average":
            reference_of(host)  # refuses where there is none
        if rule.reference == "none":
            if host.beta is None:
                raise Unsupported("reference 'none' needs an algorithm whose KL term can be switched off: rloo or grpo")
            host.beta.set(0.0)

    @property
    def steps_since_reset(self) -> int:
        """Optimizer steps since the last reset, or since the start."""
        return self._cycle.since

    @property
    def resets(self) -> int:
        """Resets done."""
        return self._cycle.resets

    def due(self) -> bool:
        """True when the next `step()` resets."""
        return self._cycle.due()

    def ask(self) -> None:
        """Makes the next `step()` reset, whatever clock and drift say."""
        self._cycle.asked = True

    def step(self) -> bool:
        """Advances by one optimizer step; True when it reset the policy."""
        due = self.due()
        self.skip()
        if due:
            self._reset()
        self._show_reference()
        return due

    def skip(self) -> None:
        """Advances by one optimizer step without a reset; what was due stays due, the reference too."""
        if self._lent_wrongly:
            raise Unsupported(
                "snapshot 'reference' needs a reference that is the initial policy to the bit, in float32; take 'copy'"
            )
        self._cycle.advance()
        self._average_steps += 1
        if self._adaptive is not None:
            self._adaptive.step()
        if self._average is not None and self._cycle.since % self._rule.update_every == 0:
            self._average.update()
            self._waits = True
            if self._moments is not None:
                self._moments.update()

    def state_dict(self) -> dict[str, Any]:
        """The average, the initial weights and the counters: what a bit-identical resume needs."""
        return {
            "average": {} if self._average is None else self._average.tensors(),
            "initial": dict(self._initial),
            "moments": {} if self._moments is None else dict(self._moments.averages),
            "beta": None if self._adaptive is None else self._adaptive.beta,
            "average_steps": self._average_steps,
            **self._cycle.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the initial weights become the saved ones, not the model's present ones.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="ElasticResetState")
        if self._rule.keeps_initial:
            check_same(state["initial"], self._initial, names=("the saved state", "the model"))
        if self._moments is not None:
            self._moments.check(state["moments"])
        if self._average is not None:
            self._average.assign(state["average"])
        self._lent_wrongly = self._lent_wrongly and not same(self._initial, state["initial"])  # else a resume
        if self._initial:
            overwrite(self._initial, state["initial"])
        self._cycle.load_state_dict(state)
        self._average_steps = state["average_steps"]
        if self._moments is not None:
            self._moments.load(state["moments"])
        if self._adaptive is not None and state.get("beta") is not None:
            self._adaptive.beta = state["beta"]
        self._waits = True
        self._show_reference()

    @torch.no_grad()
    def _reset(self) -> None:
        """The policy first, then the average: the other way around it would be a reset to the initial model."""
        target = self._initial if self._average is None else self._average.tensors()
        overwrite(followed(self._model, self._rule.exclude), target)
        restart(self._optimizer, self._model, target)
        self._cycle.begin()
        both = self._average is not None and self._rule.resets_average_after(self._average_steps)
        if self._moments is not None:
            self._moments.reset(afresh=both)
        if self._average is not None and both:
            self._average.assign(self._initial)
            self._average_steps = 0
            self._waits = True

    def _snapshot(self, host: Host) -> dict[str, Tensor]:
        own = followed(self._model, self._rule.exclude)
        if self._rule.snapshot == "copy":
            return snapshot_of(own, self._rule.device)
        lent = {name: tensor for name, tensor in reference_of(host).items() if name in own}
        self._lent_wrongly = not same(lent, own) or any(tensor.dtype != torch.float32 for tensor in lent.values())
        return lent

    def _show_reference(self) -> None:
        if self._waits and self._reference is not None and self._average is not None:
            self._waits = False
            average = self._average.tensors()
            reference = self._reference()  # looked up anew: a forward pass may have gathered a sharded one
            overwrite({name: reference[name] for name in average if name in reference}, average)  # a head has none


def reference_of(host: Host) -> dict[str, Tensor]:
    """The tensors of the KL term's reference, where the training shows them."""
    if host.reference is None:
        raise Unsupported("this needs the KL term's reference: give host=Host(reference=…)")
    return host.reference()
