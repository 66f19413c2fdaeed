"""Methods that add a term to the loss, put around whatever loss the trainer computes.

In one optimizer step of several micro-batches:

1. At the first, every term draws the texts of the whole step.
2. At each, the share of them that falls to it is read, first by the initial model where one is compared with it, then
   by the policy; what it costs goes into the one loss that the trainer takes backward.
3. When the step has ended, what the terms came to is gathered, and goes out with the trainer's own next line.

Evaluations, which run without gradients, do not come by here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RunFailed
from ..method import Method
from ..objectives import OnTexts
from .initial_logits import InitialLogits
from .term import Part, Term
from .tokens import check_countable, tokens_of_step

if TYPE_CHECKING:
    from transformers import Trainer

REPLACED = ("compute_loss", "get_batch_samples", "log")


class InLoss:
    """Adds terms to a trainer's loss.

    Attributes:
        methods: Those that have a term, in their order.
        terms: Their live halves; empty before training begins.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.methods: tuple[Method, ...] = ()
        self.terms: list[Term] = []
        self._trainer: Any = trainer
        self._initial: InitialLogits | None = None
        self._inner: dict[str, Any] = {}
        self._step = -1  # the optimizer step that is being taken
        self._micro = 0  # micro-batches of it so far
        self._samples: Sequence[Any] = ()  # the algorithm's own batches of the step
        self._means: dict[str, list[float]] = {}  # since the last line of the log

    def host(self, methods: Sequence[Method]) -> None:
        """Takes on the methods among these that have a term, in this order.

        Raises:
            Unsupported: One has no texts, or needs to know what this trainer does not show.
        """
        chosen = []
        for method in methods:
            if isinstance(method, OnTexts):
                method.check_given()
            term = method.loss_term() if "loss" in method.acts else None
            if term is not None and term.share is not None:
                check_countable(self._trainer, method.name)
            if term is not None:
                chosen.append(method)
        self.methods = tuple(chosen)
        if self.methods and not self._inner:
            for name in REPLACED:
                self._inner[name] = getattr(self._trainer, name)
                setattr(self._trainer, name, getattr(self, f"_{name}"))

    def release(self) -> None:
        """Gives the trainer its own loss back."""
        for name, inner in self._inner.items():
            delattr(self._trainer, name)
            if getattr(self._trainer, name) != inner:  # somebody else's, on this trainer alone
                setattr(self._trainer, name, inner)
        self.methods, self.terms, self._initial, self._inner = (), [], None, {}

    def begin(self, methods: Sequence[Method], *, fresh: bool) -> None:
        """Reads the texts, and finds or keeps the initial model; called when training begins, after sharding.

        Args:
            methods: All that are attached.
            fresh: Whether the policy is the initial model.
        """
        self._step, self._means = -1, {}
        self.terms = []
        for method in self.methods:
            term = method.loss_term()
            assert term is not None
            self.terms.append(Term(method.name, term, self._trainer))
        self._initial = None
        if any(term.compares for term in self.terms):
            self._initial = InitialLogits(self._trainer, methods, fresh=fresh)

    def end_step(self) -> None:
        """Gathers what the terms of this step came to, over all processes."""
        for term in self.terms:
            total, places = self._trainer.accelerator.reduce(term.seen, reduction="sum").tolist()
            term.seen.zero_()
            if places:
                self._means.setdefault(term.name, []).append(total / places)

    def state_dicts(self) -> list[dict[str, Any]]:
        """One a term; the first that compares holds the initial weights for all."""
        states = [term.state_dict() for term in self.terms]
        if self._initial is not None:
            first = next(at for at, term in enumerate(self.terms) if term.compares)
            states[first] |= self._initial.state_dict()
        return states

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up saved states.

        Raises:
            StoreError: They belong to other texts.
        """
        for term, state in zip(self.terms, states, strict=True):
            term.load_state_dict(state)
        if self._initial is not None:
            first = next(at for at, term in enumerate(self.terms) if term.compares)
            self._initial.load_state_dict(states[first])

    # --- in the place of the trainer's own ---------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inner = self._inner["compute_loss"]
        if not torch.is_grad_enabled():
            return inner(model, inputs, *args, **kwargs)
        parts = self._parts()
        # the initial model reads first: it may stand in the policy's place, whose graph must not see that
        compared = [self._initial.read(part) if self._initial and term.compares else None for term, part in parts]
        result = inner(model, inputs, *args, **kwargs)
        if not parts:
            return result
        costs = [self._finite(term, term.cost(part, other)) for (term, part), other in zip(parts, compared)]
        items = kwargs.get("num_items_in_batch", args[1] if len(args) > 1 else None)
        added = torch.stack(costs).sum() * self._factor(items)
        return (result[0] + added, *result[1:]) if isinstance(result, tuple) else result + added

    def _parts(self) -> list[tuple[Term, Part]]:
        """What is to be read beside the micro-batch at hand."""
        if self._trainer.state.global_step != self._step:
            self._begin_step()
        number, self._micro = self._micro, self._micro + 1
        steps = self._trainer.current_gradient_accumulation_steps
        found = [(term, term.part(number, steps)) for term in self.terms]
        return [(term, part) for term, part in found if part is not None]

    def _begin_step(self) -> None:
        self._step, self._micro = self._trainer.state.global_step, 0
        tokens = None
        if any(term.counts for term in self.terms):
            ours = tokens_of_step(self._trainer, self._samples)
            tokens = int(self._trainer.accelerator.reduce(ours, reduction="sum").item())
        for term in self.terms:
            term.draw(tokens)

    def _factor(self, num_items_in_batch: Any) -> int:
        """What makes up for the means that are taken later: over processes, of gradients, and over micro-batches.

        A trainer divides its loss by the number of micro-batches unless it has said that its own loss is divided.
        """
        trainer = self._trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            whole = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = whole or trainer.compute_loss_func is not None
        return int(trainer.args.world_size * (1 if scaled else trainer.current_gradient_accumulation_steps))

    def _finite(self, term: Term, cost: Tensor) -> Tensor:
        if not torch.isfinite(cost):
            raise RunFailed(
                f"what {term.name} adds to the loss is {cost.item()} at step {self._step + 1}; lower learning_rate, or "
                "its coefficient"
            )
        return cost

    def _get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._samples, number = self._inner["get_batch_samples"](*args, **kwargs)
        return self._samples, number

    def _log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {f"loss/{name}": sum(values) / len(values) for name, values in self._means.items()}
            self._means = {}
        self._inner["log"](logs, *args, **kwargs)
