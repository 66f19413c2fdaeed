"""The drift meter: how far the policy is from its initial model, measured while it trains, whatever its loss contains.

1. Once, at the initial model: one sample (or several) a prompt is drawn, and the initial model's logits at every drawn
   token are kept. The model itself is not kept.
2. At every reading: the policy's logits at the same tokens give KL(initial ‖ policy) and the policy's entropy.
3. The policy's own samples after the same prompts, drawn with the same random numbers, give length and repetition.
4. Guards look at the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn

from ..checkpoints import load_model
from ..errors import DataError, RunFailed, StoreError, Unsupported, nearest
from ..measuring import Sampling
from ..measuring.sampling import sample
from ..method import ALONE, Host
from ..weights import trainable
from ._guards import Guard, Guards, say
from ._initial_samples import Conversation, InitialSamples, apart, as_text, check_model, distinct, several
from ._state import COUNT, TENSORS, check_state

NonFinite = Literal["raise", "stop"]


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
    n-grams over all n-grams of these samples; a low share is repetition; left out where no sample has n tokens).

    Measuring leaves no trace: training with and without a meter is equal to the bit.

    Cost of a reading: one forward pass over the initial model's samples, and the drawing of as many samples from the
    policy. Memory: the initial model's logits at its samples' tokens, in main memory and in `state_dict` (tokens ×
    vocabulary × bytes of a logit; above 4 GiB refused), but no second model.

    Args:
        model: The policy: a causal language model of transformers.
        initial: What drift is measured from: a model or the directory of one, which is needed only while this is built;
            None: the policy as it stands now.
        tokenizer: Of both models.
        prompts: Texts, or conversations (lists of messages), which the tokenizer's chat template turns into texts.
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
        every: int = 20,
        samples: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        guards: Sequence[Guard] = (),
        non_finite: NonFinite = "raise",
        host: Host = ALONE,
    ) -> None:
        check_settings(prompts, every, samples, max_new_tokens, temperature, non_finite, seed)
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
        self._guards = Guards(guards, host)
        self._sampling = Sampling(max_new_tokens, temperature, seed=seed)
        self._prompts = [text for prompt in prompts for text in [as_text(tokenizer, prompt)] * samples]
        origin = load_model(initial) if isinstance(initial, str | Path) else model if initial is None else initial
        check_model(origin)
        self._samples = InitialSamples(origin, model, tokenizer, self._prompts, self._sampling)

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
            values = {"step": self.steps, **self._samples.compare(), **self._on_its_own()}
        return _agreed(values)

    def due(self) -> bool:
        """Never: a meter replaces no weights."""
        return False

    def skip(self) -> None:
        """As `step()`."""
        self.step()

    def state_dict(self) -> dict[str, Any]:
        """The initial model's samples and logits there, the last reading, and which guards' limits are crossed."""
        return {
            "samples": self._samples.tensors(),
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
        self._samples.assign(state["samples"])
        self.steps = state["steps"]
        self.reading = dict(state["reading"])
        self._guards.crossed = [bool(value) for value in state["crossed"]]

    def _on_its_own(self) -> dict[str, float]:
        drawn = sample(self._model, self._tokenizer, self._prompts, self._sampling)
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


def check_settings(
    prompts: Any, every: Any, samples: Any, max_new_tokens: Any, temperature: Any, non_finite: Any, seed: Any
) -> None:
    """Raises `ValueError` for settings of a drift meter that are out of range."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    for name, value in (("every", every), ("samples", samples), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number, at least 0, got {temperature!r}")
    if non_finite not in get_args(NonFinite):
        raise ValueError(f"non_finite cannot be {non_finite!r}{nearest(str(non_finite), get_args(NonFinite))}")
    listed = isinstance(prompts, Sized) and isinstance(prompts, Iterable) and not isinstance(prompts, str | Mapping)
    if not listed or not len(prompts):
        what = "there are none" if listed else f"got {type(prompts).__name__}"
        raise DataError(f"the drift meter takes a list of prompts, texts or conversations; {what}")
    for number, prompt in enumerate(prompts):
        talks = not isinstance(prompt, str | Mapping) and isinstance(prompt, Sequence) and len(prompt)
        if not isinstance(prompt, str) and not (talks and all(isinstance(one, Mapping) for one in prompt)):
            raise DataError(f"prompt {number} is neither a text nor a conversation: {prompt!r}")
