"""What a remedy is: a small frozen description that says when it acts and what it needs.

A method's own file holds its mathematics and its row; `untaxed.methods` lists the rows; `untaxed.sites` says what a row
is given where it acts. Nothing here knows transformers, a trainer or a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from torch import Tensor, nn

from .errors import SpecError, nearest
from .sites import ALONE, Between, Context, Host, LossTerm, Making, Need, Site, Weights
from .values import typed


@dataclass(frozen=True)
class Method:
    """One remedy with its settings: a row of the methods' table.

    Subclasses are frozen dataclasses whose fields are the settings, annotated with the types of plain values;
    `__post_init__` checks their ranges and raises `ValueError`. They override the functions of the sites they name in
    `acts`, and no others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]  # paper, arXiv number
    summary: ClassVar[str]
    acts: ClassVar[frozenset[Site]] = frozenset()
    needs: ClassVar[frozenset[Need]] = frozenset()
    given_elsewhere: ClassVar[frozenset[str]] = frozenset()  # fields that no spec sets
    resets: ClassVar[bool] = False  # True: replaces the policy's weights at steps of its own
    watches: ClassVar[bool] = False  # True: only looks at the policy, before the methods that change something
    shortens: ClassVar[bool] = False  # True: of a tensor only the length is changed, so that no promise is broken
    of_initial: ClassVar[bool] = False  # True: is about the initial model alone, so that its arm has no training

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str | None = None) -> Self:
        """Builds the method from a spec's mapping.

        Args:
            settings: As YAML reads them; each takes its field's type.
            where: The mapping's place in the spec, such as ``methods.2.kl``; the method's name where it has none.
        Raises:
            SpecError: A setting is unknown, missing or of a wrong type or range; it is named.
        """
        where = where or f"method {cls.name}"
        values = {key: cls.setting(key, value, where) for key, value in settings.items()}
        for field in dataclasses.fields(cls):
            if field.default is field.default_factory is dataclasses.MISSING and field.name not in values:
                raise SpecError(f"{where}: the setting `{field.name}` is required")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{where}: {error}") from None

    @classmethod
    def setting(cls, key: str, value: Any, where: str) -> Any:
        """One setting's value in its field's type; `where` is the method's place, for the error."""
        known = [field.name for field in dataclasses.fields(cls) if field.name not in cls.given_elsewhere]
        if key not in known:
            tail = nearest(str(key), known) if known else "; it takes no settings"
            raise SpecError(f"{where} has no setting {key!r}{tail}")
        return typed(f"{where}.{key}", get_type_hints(cls)[key], value)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for keys, files and reports."""
        return dataclasses.asdict(self)

    @property
    def trains(self) -> bool:
        """True when the method changes training, so that its arm needs runs of its own."""
        return bool(self.acts - {"after", "decoding"})

    @property
    def needed(self) -> frozenset[Need]:
        """What these very settings need: `needs`, or less where a part of the method is off."""
        return self.needs

    @property
    def trainings(self) -> int:
        """How many trainings, each with a seed of its own, a variant is made of: its `members`, else one."""
        return int(getattr(self, "members", 1)) if "members" in self.needed else 1

    @property
    def writes_reference(self) -> bool:
        """True when these settings change the KL term's reference or count on it; only one method of a training may."""
        return False

    @property
    def ships_other(self) -> bool:
        """True when other weights than the policy's are measured and shipped; only one method of a training may."""
        return False

    @property
    def promises(self) -> frozenset[Site]:
        """Sites whose outcome these settings promise something exact of, which what comes behind would undo."""
        return frozenset()

    @property
    def tag(self) -> str:
        """The method with its settings as a part of a folder's name."""
        return "-".join([self.name, *map(str, self.settings().values())])

    @property
    def measurements(self) -> int:
        """Site `after`: how many measurements of a model its weights cost to make, about."""
        return 0

    @property
    def decoding_cost(self) -> int:
        """Site `decoding`: how many times that of one model; 1 for all others, which ship one model."""
        return 1

    @property
    def yardstick(self) -> str:
        """Why the arm is a curve to compare with and no remedy, for whoever reads its numbers; empty for a remedy."""
        return ""

    def check(self, context: Context) -> None:
        """Raises `Unsupported` with the reason before any step, where the method cannot work."""

    def check_model(self, model: nn.Module) -> None:
        """Raises a `UsageError` where the method cannot work on this very model, before any step."""

    def tell(self) -> str:
        """What these settings come to in numbers, for whoever chooses them; empty where there is nothing to say."""
        return ""

    def arguments(self) -> dict[str, Any]:
        """Site `loss`: arguments that the algorithm itself already has for this method (its beta, say)."""
        return {}

    def loss_term(self) -> LossTerm | None:
        """Site `loss`: what is added to the algorithm's loss; None where `arguments` say all."""
        return None

    def adapter(self) -> dict[str, Any] | None:
        """Site `model`: in place of all weights an adapter is trained, of LoRA with these arguments; None: all are."""
        return None

    def gradient_rule(self) -> Callable[..., Any]:
        """Site `gradient`: ``f(gradient, entry, state)``, before the base optimizer's step (`optim.Pipeline`)."""
        raise NotImplementedError(f"{self.name} does not act on the gradient")

    def update_rule(self, delta: Any = None) -> Callable[..., Any]:
        """Site `update`: ``f(update, old, entry, state)``, after it; ``delta``: the SFT delta, where it is needed."""
        raise NotImplementedError(f"{self.name} does not act on the update")

    def displacement_rule(self) -> Callable[..., Tensor]:
        """Site `displacement`: ``f(displacement, entry, state)``, on what has moved since initial."""
        raise NotImplementedError(f"{self.name} does not act on the displacement")

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        """Site `between`: the live part bound to `model` and its training; called at the first step, never before."""
        raise NotImplementedError(f"{self.name} does not act between steps")

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        """Site `after`: the variant's weights, new tensors with the names and dtypes of `aligned`."""
        tail = " on one model: it merges several, see merge()" if self.trainings > 1 else ""
        raise NotImplementedError(f"{self.name} does not act after training{tail or ' on two sets of weights alone'}")

    def merge(self, initial: Weights, members: Sequence[Weights]) -> dict[str, Tensor]:
        """Site `after` in the place of `after`, where the method needs `members`: one model of as many trainings."""
        raise NotImplementedError(f"{self.name} does not merge several trainings")

    def decoded(self, initial: nn.Module, aligned: nn.Module) -> nn.Module:
        """Site `decoding`: what writes in the place of the aligned model; both stay as they are."""
        raise NotImplementedError(f"{self.name} makes no model of two")

    def make(self, making: Making) -> dict[str, Tensor]:
        """Site `after`, for methods that need more than two sets of weights; this is what is called.

        A method that searches or learns returns its weights from what `Making.once` gave.
        """
        return self.after(making.initial, making.aligned)
