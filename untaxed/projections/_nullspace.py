"""The rule of NSPO and its kin: weights of linear layers move only where general inputs do not look."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import StoreError
from ..optim import Entry
from ..sites import ALONE, Host
from ._processes import summed
from ._protect import Protect, check_prompts
from ._settings import check_choices, check_count
from ._subspace import Subspace

NullSpaceSite = Literal["displacement", "update", "gradient"]
States = Sequence[MutableMapping[str, Any]]


class NullSpace:
    r"""Keeps what linear layers do to general inputs: :math:`(W - W_0) \leftarrow (W - W_0)(I - U U^\top)`.

    :math:`U` (inputs × rank) spans what the layers are given on general prompts, with the weights before the first
    step. At site "displacement" the law holds just after every projection, whatever the optimizer did.

    Args:
        prompts: General texts.
        protect: How the subspace is found.
        every: Optimizer steps between projections, at site "displacement"; `Pipeline.flush` does one that is owed.
        site: "displacement"; "update": every update is projected (Adam-NSCL's order); "gradient": the gradient is, what
            an optimizer that scales its entries undoes in part.
    Attributes:
        reading: ``nspo/removed_share``: of the energy of what was last projected, the share taken out.
        subspaces: Layer's weight -> what is protected of its input; empty before the first step.
    """

    promises = True

    def __init__(
        self,
        prompts: Sequence[str] | None,
        protect: Protect | None = None,
        *,
        every: int = 5,
        site: NullSpaceSite = "displacement",
    ) -> None:
        check_prompts(prompts)
        check_count("every", every)
        check_choices(site=(site, NullSpaceSite))
        assert prompts is not None
        self.prompts, self.protect, self.every, self.site = prompts, protect or Protect(), every, site
        content = json.dumps([list(prompts), asdict(self.protect)])
        self._digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.reading: dict[str, float] = {}
        self.subspaces: dict[str, Subspace] = {}
        self._model: nn.Module | None = None
        self._tokenizer: Any = None
        self._energies: list[Tensor] = []

    def bind(self, model: nn.Module, host: Host = ALONE) -> NullSpace:
        """Takes the model that the optimizer trains, and the host's tokenizer; `attach` does it by itself."""
        self._model, self._tokenizer = model, host.tokenizer
        return self

    def begin(self, entries: Sequence[Entry], states: States) -> None:
        """Before the first step: finds the subspaces, while the weights are initial; later they are in the states."""
        if any(state.get("prompts", self._digest) != self._digest for state in states):
            raise StoreError(
                "the saved state belongs to other general prompts, or to other settings of what is protected"
            )
        if not any("basis" in state for state in states):
            self._find(entries, states)
        held: dict[str, Tensor] = {}
        for state in states:
            if "basis" in state:  # a loaded state has a copy for each layer
                state["basis"] = held.setdefault(state["input"], state["basis"])
        self.subspaces = {
            entry.place.name: Subspace(state["basis"], state["free"])
            for entry, state in zip(entries, states)
            if "basis" in state
        }
        self.read()

    def follows(self, entry: Entry) -> bool:
        return entry.place.name in self.subspaces

    def due(self, entry: Entry) -> bool:
        return entry.step % self.every == 0

    def owes(self, entry: Entry, state: Mapping[str, Any]) -> bool:
        """Whether the displacement has changed since it was last projected; at the other sites nothing is owed."""
        return self.site == "displacement" and "basis" in state and state.get("projected") != entry.step

    def settled(self, displacement: Tensor, state: Mapping[str, Any]) -> Tensor:
        """The displacement of any weights, an average's too, within the free directions."""
        return Subspace(state["basis"], state["free"]).remove(displacement)

    def flush(self, displacement: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor | None:
        """The projection that is owed where `every` does not divide the steps."""
        if not self.owes(entry, state):
            return None
        state["projected"] = entry.step
        return self.settled(displacement, state)

    def restart(self, state: MutableMapping[str, Any]) -> None:
        """The weights were replaced, by an average that saw them between projections, say."""
        state.pop("projected", None)

    def __call__(self, values: Tensor, *given: Any) -> Tensor:
        """Gets a displacement, an update (and the weights before it) or a gradient; then entry and state."""
        entry, state = given[-2:]
        if "basis" not in state:
            return values
        state["projected"] = entry.step
        projected = Subspace(state["basis"], state["free"]).remove(values)
        norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in (values, projected)]
        self._energies.append(torch.stack(norms).square())
        return projected

    def read(self) -> dict[str, float]:
        """The `reading` of what was projected since it was asked last, or nothing; all processes must call it."""
        if not self._energies:
            return {}
        before, after = summed(torch.stack(self._energies).sum(0)).tolist()
        self.reading = {"nspo/removed_share": max(0.0, 1 - after / before) if before else 0.0}
        self._energies = []
        return self.reading

    def _find(self, entries: Sequence[Entry], states: States) -> None:
        if self._model is None:
            raise ValueError("the projection has no model to look into: call its bind(model, Host(tokenizer=…)) first")
        found = self.protect.subspaces(self._model, self._tokenizer, self.prompts)
        names: dict[int, str] = {}
        places = {entry.place.name: state for entry, state in zip(entries, states)}
        for layer, subspace in found.items():
            name = f"{layer}.weight"
            if name in places:
                owner = names.setdefault(id(subspace), name)
                places[name].update(basis=subspace.basis, free=subspace.free, input=owner, prompts=self._digest)
        if not names:
            raise ValueError(
                f"the optimizer trains none of the {len(found)} protected layers, {next(iter(found))!r} first"
            )
