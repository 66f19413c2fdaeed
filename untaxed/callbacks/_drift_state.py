"""The drift meter: how far the policy is from its initial model, measured while it trains, whatever its loss contains.

1. Once, at the initial model: one sample (or several) a prompt is drawn, and the initial model's logits at every drawn
   token are kept. The model itself is not kept. A second set of prompts is treated as the first.
2. At every reading: the policy's logits at the same tokens give KL(initial ‖ policy) and the policy's entropy.
3. The policy's own samples after the same prompts, drawn with the same random numbers, give length and repetition.
4. Guards look at the values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checkpoints import load_model
from ..errors import RunFailed, StoreError, Unsupported
from ..measuring import Sampling
from ..measuring.sampling import sample
from ..measuring.suite import GENERAL
from ..sites import ALONE, Host
from ..weights import trainable
from ._drift_settings import NonFinite, check_prompts, check_settings, measures
from ._guards import Guard, Guards, say
from ._initial_samples import (
    Conversation,
    InitialSamples,
    apart,
    as_text,
    check_model,
    check_size,
    distinct,
    several,
    vocabulary,
)
from ._state import COUNT, TENSORS, check_state

log = logging.getLogger(__name__)


def _is_pair(value: Any) -> bool:
    """True for a name and a number."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and isinstance(value[0], str) and isinstance(value[1], int | float)


STATE = {
    "samples": TENSORS,
    "steps": COUNT,
    "reading": ("a list of names and values", lambda value: isinstance(value, list) and all(map(_is_pair, value))),
    "crossed": ("a list of truth values", lambda value: isinstance(value, list) and set(value) <= {True, False}),
}


class DriftMeterState:
    r"""Measures the drift of a policy in a plain PyTorch loop: call `step()` after every `optimizer.step()`.

    .. math:: \text{forward\_kl} = \frac{1}{N} \sum_{y \sim initial} \sum_t
        KL(p_{initial}(\cdot|y_{<t}) \,\|\, p_{policy}(\cdot|y_{<t}))

    exact over the vocabulary, on samples that are drawn once from the initial model. With it come ``entropy``, the
    policy's token-mean entropy on the same tokens (both in nats a token), and, of the policy's own samples after the
    same prompts, ``length`` (mean tokens, the end of text included), ``distinct_1`` and ``distinct_2`` (different
    n-grams over all n-grams of these samples; a low share is repetition; left out where no sample has n tokens), and
    ``tokens``, the N above. On ``general_prompts`` the same is read beside it as ``general_forward_kl``,
    ``general_entropy`` and so on: how far the policy moves where it is not trained to.

    Measuring leaves no trace: training with and without a meter is equal to the bit.

    Cost of a reading: one forward pass over the initial model's samples, and the drawing of as many samples from the
    policy. Memory: the initial model's logits at its samples' tokens, in main memory and in `state_dict` (tokens ×
    vocabulary × bytes of a logit; above 4 GiB for both sets of prompts refused), but no second model.

    Args:
        model: The policy: a causal language model of transformers.
        initial: What drift is measured from: a model or the directory of one, which is needed only while this is built;
            None: the policy as it stands now.
        tokenizer: Of both models.
        prompts: Texts, or conversations (lists of messages), which the tokenizer's chat template turns into texts.
        general_prompts: A second set, of what the policy is not aligned on.
        every: Steps between two readings.
        samples: Samples a prompt.
        max_new_tokens: Most tokens of a sample.
        temperature: At which samples are drawn; the KL is that of the models' own distributions.
        seed: Of the draws.
        guards: What is done when a value crosses a limit; what they do needs the `host`.
        non_finite: What is done when weights or logits are NaN or infinite: ``raise`` a `RunFailed`, or ``stop`` the
            training through the host.
        host: The training around the policy.
    Raises:
        ValueError: A setting out of range.
        DataError: No prompts, one that does not fit into the context, a conversation without a chat template.
        Unsupported: The model has no logits to read, the logits would be too many, there is no tokenizer.
    Example:
        ::

            meter = DriftMeterState(model, None, tokenizer, ["Once upon a time", "The capital of"], every=10)
            for batch in batches:
                train_on(batch)
                if meter.step():
                    print(meter.reading)

    Source: the definition of drift in `untaxed.measuring`; distinct-n: Li et al. 2016, arXiv:1510.03055.
    Differs: distinct-n counts tokens, not words, without the end of text.
    """

    def __init__(
        self,
        model: Any,
        initial: Any,
        tokenizer: Any,
        prompts: Sequence[str | Conversation],
        *,
        general_prompts: Sequence[str | Conversation] | None = None,
        every: int = 20,
        samples: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        guards: Sequence[Guard] = (),
        non_finite: NonFinite = "raise",
        host: Host = ALONE,
    ) -> None:
        check_settings(every, samples, max_new_tokens, temperature, non_finite, seed)
        check_prompts(prompts)
        if general_prompts is not None:
            check_prompts(general_prompts, "general prompt")
        check_model(model)
        if tokenizer is None:
            raise Unsupported("the drift meter draws texts and needs a tokenizer; a trainer has it as processing_class")
        if non_finite == "stop" and host.stop is None:
            raise Unsupported("non_finite is 'stop', which the loop around does not offer: give Host(stop=…)")
        self.steps = 0
        self.reading: dict[str, float] = {}
        self._model = model
        self._tokenizer = tokenizer
        self._every = every
        self._non_finite = non_finite
        self._host = host
        self._guards = Guards(guards, host, known=measures(general_prompts))
        self._sampling = Sampling(max_new_tokens, temperature, seed=seed)
        sets = {"": prompts, **({} if general_prompts is None else {GENERAL: general_prompts})}
        texts = {begins: _texts(tokenizer, given, samples) for begins, given in sets.items()}
        check_size(sum(map(len, texts.values())) * max_new_tokens, vocabulary(model))
        origin = load_model(initial) if isinstance(initial, str | Path) else model if initial is None else initial
        check_model(origin)
        self._sets = {
            begins: InitialSamples(origin, model, tokenizer, given, self._sampling) for begins, given in texts.items()
        }
        counts = (f"{len(sets[begins])} {_named(begins)}, {self._sets[begins].tokens} tokens" for begins in sets)
        log.info("drift meter: of the initial model's samples: %s", "; ".join(counts))

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens of the initial model's samples each set's means are taken over."""
        return {f"{begins}tokens": given.tokens for begins, given in self._sets.items()}

    def step(self) -> bool:
        """Advances by one optimizer step; True when there is a new `reading`."""
        self.steps += 1
        if self.steps % self._every:
            return False
        if broken := _broken_weights(self._model):
            self._diverged(f"the weights are not finite after step {self.steps} ({broken!r} first)")
            return False
        values = self.measure()
        if broken := next((name for name, value in values.items() if not math.isfinite(value)), ""):
            self._diverged(f"{broken} is {values[broken]} after step {self.steps}: the policy's logits have diverged")
            return False
        self.reading = values
        self._tell({f"drift/{name}": value for name, value in values.items() if name != "step"})
        if acted := self._guards.look(values):
            self._tell(acted)
        return True

    def measure(self) -> dict[str, float]:
        """Reads the drift now, whatever is due; ``step`` says after how many steps.

        Under several processes every one calls it, and all get the values of the first.
        """
        with apart(self._model, self._tokenizer):
            values: dict[str, float] = {"step": self.steps}
            for begins, given in self._sets.items():
                read = {**given.compare(), **self._on_its_own(given.prompts), "tokens": given.tokens}
                values |= {f"{begins}{name}": value for name, value in read.items()}
        return _agreed(values)

    def due(self) -> bool:
        """Never: a meter replaces no weights."""
        return False

    def skip(self) -> None:
        """As `step()`."""
        self.step()

    def state_dict(self) -> dict[str, Any]:
        """The initial model's samples and logits there, the last reading, and which guards' limits are crossed."""
        kept = ((begins, given.tensors()) for begins, given in self._sets.items())
        return {
            "samples": {f"{begins}{name}": tensor for begins, each in kept for name, tensor in each.items()},
            "steps": self.steps,
            "reading": [[name, value] for name, value in self.reading.items()],
            "crossed": list(self._guards.crossed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; drift is measured from its initial model then, on its samples.

        Raises:
            StoreError: It is no saved state, or one of other prompts or guards; nothing is taken up then.
        """
        check_state(state, STATE, of="DriftMeterState")
        if len(state["crossed"]) != len(self._guards.crossed):
            raise StoreError("the saved drift meter has other guards; give a state that was saved with these")
        parts = self._parted(state["samples"])
        for begins, given in self._sets.items():
            given.check(parts[begins])
        for begins, given in self._sets.items():
            given.assign(parts[begins])
        self.steps = state["steps"]
        self.reading = dict(state["reading"])
        self._guards.crossed = [bool(value) for value in state["crossed"]]

    def _parted(self, saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Saved tensors by set of prompts."""
        parts: dict[str, dict[str, Tensor]] = {"": {}, GENERAL: {}}
        for name, tensor in saved.items():
            parts[GENERAL if name.startswith(GENERAL) else ""][name.removeprefix(GENERAL)] = tensor
        if bool(parts[GENERAL]) != (GENERAL in self._sets):
            has, lacks = ("has", "has none here") if parts[GENERAL] else ("has no", "has them here")
            raise StoreError(f"the saved drift meter {has} general prompts, and it {lacks}; give general_prompts alike")
        return parts

    def _on_its_own(self, prompts: Sequence[str]) -> dict[str, float]:
        drawn = sample(self._model, self._tokenizer, prompts, self._sampling)
        lengths = drawn.mask.sum(1).tolist()
        rows = [row[:length] for row, length in zip(drawn.token_ids.tolist(), lengths, strict=True)]
        end = self._tokenizer.eos_token_id
        written = [row[:-1] if row and row[-1] == end else row for row in rows]
        shares = {f"distinct_{n}": distinct(written, n) for n in (1, 2)}
        return {"length": sum(lengths) / len(lengths), **{k: v for k, v in shares.items() if v is not None}}

    def _tell(self, values: Mapping[str, float]) -> None:
        if self._host.log is not None:
            self._host.log(values)

    def _diverged(self, what: str) -> None:
        if self._non_finite == "raise":
            raise RunFailed(f"{what}; lower learning_rate")
        say(f"{what}; training stops here")
        self._tell({"drift/non_finite": 1.0})
        assert self._host.stop is not None
        self._host.stop()


def _texts(tokenizer: Any, prompts: Sequence[str | Conversation], samples: int) -> list[str]:
    """The prompts as texts, each as often as it is sampled after."""
    return [text for prompt in prompts for text in [as_text(tokenizer, prompt)] * samples]


def _named(begins: str) -> str:
    return "general prompts" if begins else "prompts"


def _broken_weights(model: nn.Module) -> str:
    """The first trainable tensor with a value that is not finite, in any process; empty where there is none."""
    ours = next((name for name, tensor in trainable(model).items() if not torch.isfinite(tensor).all()), "")
    if not several():
        return ours
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, ours)
    return str(next(filter(None, found), ""))


def _agreed(values: dict[str, float]) -> dict[str, float]:
    """The first process's values in all: guards must not act in one and not in another."""
    if not several():
        return values
    box = [values]
    dist.broadcast_object_list(box, src=0)
    return box[0]
