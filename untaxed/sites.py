"""What a method is given at the sites where it acts, and what it gives back there.

The sites, in the order in which they act within one step::

    data -> loss -> gradient -> base optimizer -> update -> displacement -> (measure) -> between

and, outside of it: `model` before training (which weights are trained), `after` when it is over, `decoding` while the
trained model writes. Nothing here knows transformers, a trainer or a file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor, nn

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
