"""The rule of OGPSA: the gradient, or the update, without what it has in common with gradients of reference losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..errors import DataError, StoreError
from ..measuring.batching import context_length
from ..optim import Entry, plain_name
from ..sites import ALONE, Host
from ._gradients import reference_gradients
from ._losses import Loss, ReferenceSet, Rows, check_sets, digest_of, reference_sets
from ._settings import check_choices, check_count
from ._span import Span, Sum, When, gram_schmidt, inner_products, removed_coordinates, subtract

Scope = Literal["tensor", "model"]
OrthogonalSite = Literal["gradient", "update"]
States = Sequence[MutableMapping[str, Any]]


class Orthogonal:
    r"""Takes out of the gradient what lies in the span of reference gradients: :math:`g \leftarrow g - U U^\top g`.

    The reference gradients are taken at the current weights, before the first step and every `refresh_every` steps.
    One projection of an accumulated gradient equals that of every micro-batch. What clips the gradient before the
    optimizer's step, as transformers' trainer does, scales it and leaves its direction.

    Args:
        sets: Name -> rows, see `untaxed.projections.reference_sets`.
        loss: "ce", "preference", or a function of the model and a batch.
        refresh_every: Optimizer steps between two looks at the reference losses.
        scope: "tensor": inner products tensor by tensor; "model": over the whole model.
        when: "always", or "conflict": only what raises a reference loss is taken out.
        site: "gradient": before the optimizer; "update": what it makes of it.
        tolerance: Share of a reference gradient's norm that must be left for it to add a direction.
        samples, max_tokens, beta: See `untaxed.projections.reference_sets`.
    Attributes:
        reading: Of the last step: ``ogpsa/removed_share``, the share of the gradient's energy that was taken out, and
            ``ogpsa/tax_rate``, the share that lies in the span: an estimate of the tax rate
            :math:`\|U^\top g\|^2 / \|g\|^2`, an upper one with scope "tensor".
    Example:
        >>> from untaxed.optim import Pipeline
        >>> model = nn.Linear(2, 1, bias=False)
        >>> one = lambda model, batch: model(batch).sum()  # its gradient is the batch
        >>> rule = Orthogonal({"first": [torch.tensor([1.0, 0.0])]}, loss=one).bind(model)
        >>> optimizer = Pipeline(torch.optim.SGD(model.named_parameters(), lr=1.0), gradient=rule)
        >>> before = model.weight.detach().clone()
        >>> model(torch.tensor([3.0, 4.0])).sum().backward()
        >>> optimizer.step(), (before - model.weight.detach()).round(decimals=4).tolist()
        (None, [[0.0, 4.0]])
        >>> round(rule.reading["ogpsa/tax_rate"], 2)  # 9 of 25
        0.36
    """

    together = True
    promises = True

    def __init__(
        self,
        sets: Mapping[str, Rows] | None,
        *,
        loss: Loss | Callable[[Any, Any], Tensor] = "ce",
        refresh_every: int = 5,
        scope: Scope = "tensor",
        when: When = "always",
        site: OrthogonalSite = "gradient",
        tolerance: float = 1e-6,
        samples: int | None = 200,
        max_tokens: int = 512,
        beta: float = 0.1,
    ) -> None:
        check_orthogonal(loss, refresh_every, scope, when, site, tolerance, samples, max_tokens, beta)
        check_sets(sets, loss)
        assert sets is not None
        self.refresh_every, self.tolerance = refresh_every, tolerance
        self.scope, self.when, self.site = scope, when, site
        self.reading: dict[str, float] = {}
        self._given: dict[str, Any] = {"sets": sets, "loss": loss}
        self._how: dict[str, Any] = {"samples": samples, "max_tokens": max_tokens, "beta": beta}
        self._model: nn.Module | None = None
        self._sets: list[ReferenceSet] = []
        self._digest = f"{digest_of(sets, loss)} {scope}"
        self._looked_at = 0  # parameters that directions were found for
        self._said = False

    def bind(self, model: nn.Module, host: Host = ALONE) -> Orthogonal:
        """Takes the model whose losses are looked at, the one that the optimizer trains; `attach` does it by itself.

        Args:
            model: After sharding. Under DDP the module inside.
            host: Its tokenizer, which rows of texts need.
        """
        kind = next(model.parameters()).device.type
        limit = context_length(model) if hasattr(model, "config") else None
        how = {**self._how, "max_tokens": min(self._how["max_tokens"], limit or self._how["max_tokens"])}
        self._sets = reference_sets(**self._given, tokenizer=host.tokenizer, device=kind, **how)
        self._model = model
        return self

    def begin(self, entries: Sequence[Entry], states: States) -> None:
        """Before a step: looks at the reference losses where that is due."""
        if any(state.get("sets", self._digest) != self._digest for state in states):
            raise StoreError("the saved state belongs to other reference sets or scope; resume with what it began with")
        step = max(entry.step for entry in entries)
        if (step - 1) % self.refresh_every == 0 or not any("coordinates" in state for state in states):
            self._refresh(entries, states, step)
        self._looked_at = sum("coordinates" in state for state in states)

    def __call__(self, values: list[Tensor], *given: Any) -> list[Tensor]:
        """Gets gradients, or updates and the weights before them; then entries and states."""
        entries, states = given[-2:]
        known = [at for at, state in enumerate(states) if "coordinates" in state]
        if not known:
            return values
        chosen = [values[at] for at in known]
        reduce = sum_over([entries[at] for at in known])
        directions, coordinates = self._span([states[at] for at in known], reduce)
        found = inner_products(chosen, directions, jointly=self.scope == "model", reduce=reduce)
        products = found[:, :-1]
        # a step goes against the gradient and along the update
        sign = 1.0 if self.site == "gradient" else -1.0
        removed = sign * removed_coordinates(sign * products, coordinates, self.when)
        subtract(chosen, removed, directions)
        if self.scope == "tensor":
            _clear_spanned(chosen, [entries[at] for at in known], found, removed, coordinates)
        self._read(values, known, found, removed, entries)
        return values

    def read(self) -> dict[str, float]:
        """The last step's `reading`."""
        return self.reading

    def _span(self, states: States, reduce: Sum | None) -> tuple[list[list[Tensor]], Tensor]:
        """The directions, and the reference gradients in their coordinates, for the parameters that move now."""
        directions = [[state[f"direction.{number}"] for state in states] for number in range(len(self._given["sets"]))]
        coordinates = torch.tensor([state["coordinates"] for state in states], dtype=torch.float64)
        if self.scope == "tensor" or len(states) == self._looked_at:
            return directions, coordinates
        # what of the directions lies in some of the tensors is no longer orthonormal
        copies = [[tensor.clone() for tensor in direction] for direction in directions]
        span = gram_schmidt(copies, tolerance=self.tolerance, jointly=True, reduce=reduce)
        return span.directions, coordinates @ span.coordinates

    def _read(self, values: list[Tensor], known: list[int], found: Tensor, removed: Tensor, entries: Any) -> None:
        rest = sorted(set(range(len(values))) - set(known))
        outside = 0.0
        if rest:  # of parameters that the references do not reach
            reduce = sum_over([entries[at] for at in rest])
            outside = float(inner_products([values[at] for at in rest], [], jointly=False, reduce=reduce).sum())
        if self.scope == "model":  # every row holds the whole
            found, removed = found[:1], removed[:1]
        energy = float(found[:, -1].sum()) + outside
        inside, gone = float(found[:, :-1].square().sum()), float(removed.square().sum())
        shares = (gone / energy, inside / energy) if energy else (0.0, 0.0)
        self.reading = {"ogpsa/removed_share": shares[0], "ogpsa/tax_rate": shares[1]}

    def _refresh(self, entries: Sequence[Entry], states: States, step: int) -> None:
        if self._model is None:
            raise ValueError("the projection has no model to take reference gradients of: call its bind(model) first")
        names = [entry.place.name for entry in entries]
        known = {plain_name(name): parameter.requires_grad for name, parameter in self._model.named_parameters()}
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"the optimizer's parameter {missing[0]!r} is none of the model given to bind")
        for state in states:
            state.clear()  # the old directions make room for the new ones
        gradients = reference_gradients(self._model, self._sets, step=step)
        trained = [at for at, name in enumerate(names) if known[name]]
        vectors = [[one[names[at]] for at in trained] for one in gradients]
        reduce = sum_over([entries[at] for at in trained])
        span = gram_schmidt(vectors, tolerance=self.tolerance, jointly=self.scope == "model", reduce=reduce)
        self._judge(span, step)
        for row, at in enumerate(trained):
            states[at]["coordinates"] = tuple(map(tuple, span.coordinates[row].tolist()))
            states[at].update({f"direction.{number}": one[row] for number, one in enumerate(span.directions)})
            states[at]["sets"] = self._digest

    def _judge(self, span: Span, step: int) -> None:
        """Says once which sets add nothing; refuses where none does."""
        zero, dropped = span.zero.all(0).tolist(), span.dropped.all(0).tolist()
        names = [one.name for one in self._sets]
        if all(zero):
            raise DataError(
                f"the reference losses ({', '.join(names)}) have no gradient at step {step}: nothing would be "
                "protected; look at their rows, and whether the model can learn from them"
            )
        for name, nothing, parallel in zip(names, zero, dropped):
            if parallel and not self._said:
                why = "is zero" if nothing else "is parallel to those before it"
                warnings.warn(
                    f"reference set {name!r} adds no direction at step {step}: its gradient {why}; it protects nothing "
                    "that the others do not",
                    stacklevel=2,
                )
        self._said = self._said or any(dropped)


def _clear_spanned(
    values: list[Tensor], entries: Sequence[Entry], found: Tensor, removed: Tensor, coordinates: Tensor
) -> None:
    """Makes zeros of tensors with no more entries than directions, of which nothing is left.

    What rounding leaves there would become whole steps of an optimizer that scales its entries, as Adam does.
    """
    directions = (coordinates.diagonal(dim1=-2, dim2=-1) > 0).sum(-1).tolist()
    left = (found[:, -1] - removed.square().sum(-1)).tolist()
    for value, entry, count, rest, energy in zip(values, entries, directions, left, found[:, -1].tolist()):
        if math.prod(entry.shape) <= count and rest <= 1e-5 * energy:
            value.zero_()


def sum_over(entries: Sequence[Entry]) -> Sum | None:
    """Sums over the processes that hold the parts of these parameters; None where all are whole.

    Args:
        entries: One a row of what is summed.
    """
    if all(entry.place.reduce is None for entry in entries):
        return None

    def reduce(values: Tensor) -> Tensor:
        total = values.clone()
        for group in dict.fromkeys(entry.place.reduce for entry in entries):
            rows = [at for at, entry in enumerate(entries) if entry.place.reduce == group]
            if group is not None:
                device = entries[rows[0]].device
                total[rows] = group(values[rows].to(device)).to(total.device)
        return total

    return reduce


def check_orthogonal(
    loss: Any,
    refresh_every: int,
    scope: str,
    when: str,
    site: str,
    tolerance: float,
    samples: int | None,
    max_tokens: int,
    beta: float,
) -> None:
    """Raises `ValueError` for a setting that cannot be."""
    check_count("refresh_every", refresh_every)
    check_choices(scope=(scope, Scope), when=(when, When), site=(site, OrthogonalSite))
    if not callable(loss) and loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, or a function, got {loss!r}")
    check_number("tolerance", tolerance)
    check_number("beta", beta)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
    check_count("samples", samples, none=True)
    check_count("max_tokens", max_tokens, least=2)
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
