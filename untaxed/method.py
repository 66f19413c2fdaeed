"""What a remedy is: a small frozen description that says when it acts and what it needs.

A method's own file holds its mathematics and its row; `untaxed.methods` lists the rows. Nothing here knows
transformers, a trainer or a file.

The sites, in the order in which they act within one step::

    data -> loss -> gradient -> base optimizer -> update -> displacement -> (measure) -> between

and, outside of it: `model` before training (which weights are trained), `after` when it is over, `decoding` while the
trained model writes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, get_type_hints, runtime_checkable

from torch import Tensor, nn

from .errors import SpecError, nearest
from .values import typed

Site = Literal["model", "data", "loss", "gradient", "update", "displacement", "between", "after", "decoding"]
SITES: tuple[Site, ...] = get_args(Site)  # in the order in which they act
Need = Literal["pretrained", "prompts", "general_prompts", "reference_sets", "replay", "members"]
INPUTS: Mapping[Need, str] = {  # a need that a training gives -> the field that takes it, in `Method.given_elsewhere`
    "pretrained": "delta",
    "general_prompts": "prompts",
    "reference_sets": "reference_sets",
    "replay": "texts",
}
Weights = Mapping[str, Tensor]


def check_fraction(name: str, value: object, *, beyond: str = "") -> None:
    """Raises `ValueError` unless a setting is a number in [0, 1]; `beyond` says what a number outside would mean."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}{beyond}")


def check_number(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


class Between(Protocol):
    """The live half of a method that acts between optimizer steps, bound to one model."""

    def step(self) -> bool:
        """Advances by one optimizer step; True when the policy's weights (not the reference's) were replaced."""

    def due(self) -> bool:
        """True when the next `step()` would replace the weights of the policy or of the reference."""

    def skip(self) -> None:
        """Advances by one optimizer step without replacing any weights, even when due; what was due stays due.

        So it goes at the last step, and while samples of the policy wait to be learned from.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Shown(Protocol):
    """The live half of a method whose result is other weights than the policy's: an average that goes along."""

    def variant(self) -> dict[str, Tensor]:
        """These weights by the names of the policy's trainable parameters (local shards)."""


@dataclass(frozen=True)
class Host:
    """The training around a policy, as far as a method that acts between steps may look at it or change it.

    In a plain PyTorch loop give what there is; `attach` gives everything that the trainer has.

    Attributes:
        optimizer: Its state belongs to the policy's parameters.
        reference: Gives the tensors of the KL term's reference (local shards) by the policy's names, to be written in
            place; for LoRA they are made a second adapter's at the first call. Raises `Unsupported` with the reason
            where there is no reference, or none that may change.
        beta: Reads and sets the KL term's coefficient.
        kl: What the algorithm itself measured of the KL term at the last step, None where it measured nothing.
        drift: The last readings of the drift meter, by measure, and the ``step`` they were taken at; empty before the
            first. None where there is no meter.
        log: Takes values to the training's log and trackers.
        tokenizer: The policy's.
        held_out: Gives prompts that are evaluated on and not trained on, texts or conversations, always the same ones.
            Raises `Unsupported` with the reason where there are none.
        scale_lr: Multiplies the learning rate, and what its schedule goes on from.
        stop: Ends the training after this step.
        reset: Asks the method that resets the policy to do so at the next free step.
        save: Writes the policy with its tokenizer into a folder; every process calls it.
    """

    optimizer: Any = None
    reference: Callable[[], dict[str, Tensor]] | None = None
    beta: Setting | None = None
    kl: Callable[[], float | None] | None = None
    drift: Callable[[], Mapping[str, float]] | None = None
    log: Callable[[Mapping[str, float]], None] | None = None
    tokenizer: Any = None
    held_out: Callable[[], Sequence[Any]] | None = None
    scale_lr: Callable[[float], None] | None = None
    stop: Callable[[], None] | None = None
    reset: Callable[[], None] | None = None
    save: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Setting:
    """A number of the training that can be read and set while it runs."""

    get: Callable[[], float]
    set: Callable[[float], None]


ALONE = Host()  # a loop that shows nothing but the policy


@dataclass(frozen=True)
class LossTerm:
    r"""What a method adds to the algorithm's loss: a value a token, on texts of its own.

    .. math:: L \leftarrow L + c\,\frac{1}{N} \sum_t value_t

    over the N tokens of a step's own batch, whatever the processes and micro-batches that it is divided among. With
    ``share`` :math:`s` in place of :math:`c` and a batch size, as many texts are drawn as keep their tokens at that
    share of all tokens of the training so far, and each of their tokens counts as one of the algorithm's own:
    :math:`L + \frac{1}{N_{algorithm}} \sum_t value_t`.

    Attributes:
        texts: What is read; all of them once, in a random order, then again in another.
        called: What messages call them ("replay: text 3 …").
        value: ``f(logits, targets)``, or ``f(logits, initial_logits)`` where `compares`; logits are ``(places,
            vocabulary)``, the others ``(places,)`` and ``(places, vocabulary)``. Gives ``(places,)``, in nats a token.
        compares: True: at every token, with initial's logits there. False: at every token that another one follows,
            the end of text among these.
        coefficient: :math:`c`; None with a share.
        batch_size: Texts an optimizer step, over all processes and micro-batches; None with a share.
        share: :math:`s`, in (0, 1), of all tokens that the policy reads with a gradient; None with a coefficient.
        seed: Of the order.
    """

    texts: Sequence[str]
    called: str
    value: Callable[[Tensor, Tensor], Tensor]
    compares: bool = False
    coefficient: float | None = None
    batch_size: int | None = None
    share: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Responses:
    """What a model wrote after training prompts, as token ids, and the proxy reward of each response."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    rewards: Sequence[float]


@dataclass(frozen=True)
class Making:
    """What there is to make a variant's weights from, for a method that acts after training.

    Attributes:
        initial: Weights before alignment.
        aligned: Weights after it, of the methods before this one where several are composed. They may be `model`'s own.
        model: Has the aligned weights. Others may be written while a method works, who puts the aligned ones back.
        seed: The run's.
        respond: Draws that many responses of `model`, as it is now, to training prompts.
        judge: Measures `model`, as it is now, on validation: ``reward`` (the proxy), ``tax`` on the select abilities,
            None where undefined with ``why``; beside them ``initial_reward``, that of the initial model.
        once: Gives what it gave the last time for this variant, or else calls its argument for plain values and
            keeps them: what was searched is not searched again.
        folder: For logs that let a search go on after a kill; this variant's own, made when it is written to.
        tell: Takes a few words on how far the work is.
    """

    initial: Weights
    aligned: Weights
    model: nn.Module
    seed: int
    respond: Callable[[int], Responses]
    judge: Callable[[], Mapping[str, Any]]
    once: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]
    folder: Path
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Context:
    """What a method may ask about the training it is about to join.

    Attributes:
        algorithm: None: no training, checkpoints are given.
        max_steps: Optimizer steps.
        given: What of `INPUTS` the training gives to the methods that need it.
        backend: plain, ddp, fsdp2, fsdp1 or deepspeed.
        lora: Whether adapters are trained.
        free_every: Optimizer steps from one at which no on-policy samples wait to the next.
        shapes: Of the initial model's tensors, where they are known.
        rewards: Those that are measured (proxy, gold), where it is known.
        temperature: At which responses are drawn to be measured, where it is known.
    """

    algorithm: str | None
    max_steps: int | None
    given: frozenset[Need] = frozenset()
    backend: str = "plain"
    lora: bool = False
    free_every: int = 1
    shapes: Mapping[str, Sequence[int]] | None = None
    rewards: Collection[str] | None = None
    temperature: float | None = None

    def first_free(self, step: int) -> int:
        """The step from this one on at which weights may be replaced."""
        return -(-step // self.free_every) * self.free_every

    @property
    def held(self) -> str:
        """What else keeps weights from being replaced, for messages."""
        if self.free_every == 1:
            return ""
        return f", nor where samples wait to be learned from (all steps but multiples of {self.free_every})"


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
