"""Rewards by a sequence classifier of transformers: a text in, one number out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoints import check_model_dir, fingerprint, load_classifier, load_tokenizer
from ..errors import CheckpointError, DataError, SpecError, nearest, require
from ..templates import filled
from .batching import context_length
from .encoding import join
from .journal import NOTHING_KEPT, Journal

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class RewardModel:
    """Scores completions with a reward model, in batches sorted by length.

    The weights are loaded at the first call, once in a process; the object itself holds none and may be pickled.
    A model with one label gives its logit. Of several labels, `label` is the one rewarded: its logit where the model
    is a regression (``problem_type`` of its config), else its probability.

    Args:
        directory: Of the model and its tokenizer; safetensors, no code of its own.
        label: The rewarded one of several labels.
        chat: Whether the tokenizer's chat template makes the text, of a user's and an assistant's message.
        template: How prompt and completion make the text, as in ``{prompt} {completion}``; by default they are joined
            by one space where none is there.
        batch_size: Texts a forward pass.
        max_tokens: The longest text that may be scored; by default what the model can read.
        dtype: Of the weights.
        device: Where it runs; by default on the GPU where there is one.
    """

    directory: Path
    label: str | None = None
    chat: bool = False
    template: str | None = None
    batch_size: int = 16
    max_tokens: int | None = None
    dtype: Precision = "float32"
    device: str | None = None

    __name__ = "reward_model"  # TRL names its metrics after a reward

    def check(self) -> None:
        """Checks all that can be checked without loading the weights.

        Raises:
            CheckpointError: The directory holds no sequence classifier that can be loaded safely.
            SpecError: `label` is missing or unknown, or the tokenizer has no chat template.
        """
        check_model_dir(self.directory)
        config = require("transformers", extra="train").AutoConfig.from_pretrained(
            self.directory, local_files_only=True
        )
        kinds = config.architectures or []
        if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise CheckpointError(
                f"{self.directory} is a {kinds[0]}, no reward model; give one that was saved as a sequence classifier"
            )
        rewarded_label(config, self.label, self.directory)
        if self.chat:
            self._check_template(load_tokenizer(self.directory))

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], journal: Journal = NOTHING_KEPT, **columns: Any
    ) -> list[float]:
        """One number a completion; further columns, which TRL passes, are ignored.

        Args:
            prompts: As texts.
            completions: As texts, one a prompt.
            journal: Notes the rewards batch by batch.
            columns: Not looked at.

        Raises:
            DataError: Texts are longer than the model can read, or hold nothing to read; they are counted, never cut.
        """
        if not completions:
            return []
        model, tokenizer = _loaded(self.directory, self.dtype, self.device)
        if self.chat:
            self._check_template(tokenizer)
        texts = [self.text(tokenizer, prompt, completion) for prompt, completion in zip(prompts, completions)]
        encoded = tokenizer(texts, add_special_tokens=not self.chat, truncation=False, padding=False, verbose=False)
        self._check_lengths([len(ids) for ids in encoded["input_ids"]], model, tokenizer)
        column, kind = rewarded_label(model.config, self.label, self.directory)
        values = [0.0] * len(texts)
        names = [name for name in inspect.signature(model.forward).parameters if name in encoded]
        for chosen, inputs in self._batches({name: encoded[name] for name in names}, model.config.pad_token_id):

            def read(inputs: Mapping[str, Tensor] = inputs) -> Tensor:
                logits = model(**{name: part.to(model.device) for name, part in inputs.items()}).logits
                return _values(logits.float(), kind)[:, column]

            found = journal.once(partial(self._about, inputs), read)
            for at, value in zip(chosen, found.tolist(), strict=True):
                values[at] = value
        return values

    def _about(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        """All that the rewards of a batch depend on."""
        read = {name: part.tolist() for name, part in inputs.items()}
        return ["rewards", _content(self.directory), self.label, self.dtype, read]

    def text(self, tokenizer: Any, prompt: str, completion: str) -> str:
        """What the model reads."""
        if self.chat:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            made: str = tokenizer.apply_chat_template(messages, tokenize=False)
            return made
        if self.template is None:
            return join(prompt, completion) if completion else prompt
        return filled(self.template, {"prompt": prompt, "completion": completion})

    def _check_template(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise SpecError(
                f"the tokenizer of {self.directory} has no chat template; leave out `chat`, or write the texts that "
                "the model was trained on as `template`"
            )

    def _check_lengths(self, lengths: Sequence[int], model: Any, tokenizer: Any) -> None:
        known = (context_length(model), tokenizer.model_max_length, self.max_tokens)
        limit = min((one for one in known if one), default=None)
        if empty := [at for at, length in enumerate(lengths) if not length]:
            raise DataError(
                f"{self.directory}: text {empty[0]} is empty ({len(empty)} such); there is nothing to score"
            )
        if limit is not None and (long := [length for length in lengths if length > limit]):
            raise DataError(
                f"{self.directory}: {len(long)} of {len(lengths)} texts are longer than the {limit} tokens that the "
                f"reward model may read (the longest {max(long)}); none is cut: lower max_new_tokens or leave out long "
                "prompts"
            )

    def _batches(self, encoded: Mapping[str, Any], pad: int | None) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Texts of like length together, with their positions; one at a time where no token pads."""
        ids = encoded["input_ids"]
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        size = 1 if pad is None else self.batch_size
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            fill = {"input_ids": pad or 0}
            yield chosen, {name: _padded([encoded[name][at] for at in chosen], fill.get(name, 0)) for name in encoded}


def rewarded_label(config: Any, label: str | None, directory: Path) -> tuple[int, str]:
    """The column of the rewarded label, and how logits become rewards: ``logit``, ``sigmoid`` or ``softmax``.

    Raises:
        SpecError: There are several labels and none is named, or the named one is not there.
    """
    names = {str(name): int(at) for at, name in config.id2label.items()}
    if label is None and len(names) > 1:
        raise SpecError(f"{directory} has {len(names)} labels: name the rewarded one as `label`: {', '.join(names)}")
    if label is not None and label not in names:
        raise SpecError(f"{directory} has no label {label!r}{nearest(label, names)}")
    kind = {"regression": "logit", "multi_label_classification": "sigmoid"}.get(config.problem_type, "softmax")
    return (0 if label is None else names[label]), ("logit" if len(names) == 1 else kind)


def _values(logits: Tensor, kind: str) -> Tensor:
    return logits.softmax(-1) if kind == "softmax" else logits.sigmoid() if kind == "sigmoid" else logits


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """``(rows, longest)``, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


_content = functools.cache(fingerprint)  # of the weights that are loaded, once in a process, too


@functools.cache
def _loaded(directory: Path, dtype: Precision, device: str | None) -> tuple[Any, Any]:
    model: Any = load_classifier(directory, DTYPES[dtype])
    tokenizer: Any = load_tokenizer(directory)
    # Without a padding token transformers reads the last token of a text, and refuses more than one text. With one it
    # reads the last other token, which is the same unless texts end with it.
    if model.config.pad_token_id is None and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer
