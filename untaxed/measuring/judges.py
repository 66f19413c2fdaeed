"""A language model as judge: which of two answers is better, asked in both orders."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import load_model, load_tokenizer
from ..errors import DataError, SpecError
from .batching import Scored, batches, context_length
from .encoding import encode_answers
from .forward import log_probs, logits_at, totals

LETTERS = ("A", "B")
QUESTION = """Two answers to one prompt follow. Which one is better?

Prompt:
{prompt}

Answer A:
{a}

Answer B:
{b}

"""
CLOSING = "The better answer is"


def question(prompt: str, a: str, b: str) -> str:
    """What a judge is asked."""
    return QUESTION.format(prompt=prompt, a=a or "(an empty answer)", b=b or "(an empty answer)")


@dataclass(frozen=True)
class LanguageModelJudge:
    r"""Prefers the answer whose letter a causal language model finds likelier, summed over both orders.

    .. math:: m = \log\frac{p(A\,|\,y, y^0)}{p(B\,|\,y, y^0)} + \log\frac{p(B\,|\,y^0, y)}{p(A\,|\,y^0, y)}

    The model's answer y is preferred where m > 0; m = 0 is a tie. What the judge gives to a letter or a place whatever
    stands there cancels out.

    Args:
        directory: Of the judging model and its tokenizer.
        chat: Whether the question is put as a user's message by the tokenizer's chat template.
    """

    directory: Path
    chat: bool = False

    def check(self) -> None:
        """Raises an error where the model or its chat template cannot be used; the weights are not loaded."""
        tokenizer: Any = load_tokenizer(self.directory)
        if self.chat and not tokenizer.chat_template:
            raise SpecError(f"the tokenizer of {self.directory} has no chat template; leave out `chat`")
        letters = tokenizer([f"{CLOSING} {letter}" for letter in LETTERS])["input_ids"]
        if letters[0] == letters[1]:
            raise SpecError(f"{self.directory} cannot be asked for a letter: its tokenizer does not tell A from B")

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """The outcomes, see `untaxed.measuring.win_rates.Judge`.

        Raises:
            DataError: A question is longer than the judge's context.
        """
        model, tokenizer = _loaded(self.directory)
        rows = list(zip(prompts, ours, theirs, strict=True))
        asked = [question(prompt, a, b) for prompt, mine, other in rows for a, b in ((mine, other), (other, mine))]
        texts = [self._put(tokenizer, text) for text in asked]
        questions = [(text, [f" {letter}" for letter in LETTERS]) for text in texts]
        groups = encode_answers(tokenizer, questions, eos=False, where=f"{self.directory} as judge, question")
        scored = [one for group in groups for one in group]
        # (items, orders, letters)
        likely = self._likelihoods(model, scored).reshape(len(rows), 2, 2)
        margin = likely[:, 0, 0] - likely[:, 0, 1] + likely[:, 1, 1] - likely[:, 1, 0]
        return ((np.sign(margin) + 1) / 2).tolist()

    def _put(self, tokenizer: Any, text: str) -> str:
        if not self.chat:
            return text + CLOSING
        messages = [{"role": "user", "content": text + "Say A or B."}]
        opened: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return opened + CLOSING

    def _likelihoods(self, model: Any, scored: Sequence[Scored]) -> np.ndarray:
        limit = context_length(model)
        long = sum(limit is not None and len(one.tokens) - 1 > limit for one in scored[::2])
        if long:
            raise DataError(
                f"{self.directory}: {long} of {len(scored) // 2} questions are longer than the judge's context of "
                f"{limit} tokens; none is cut: lower max_new_tokens or name a judge that reads more"
            )
        sums = np.zeros((len(scored), 2))
        vocabulary = int(model.config.get_text_config().vocab_size)
        for batch in batches(scored, vocabulary=vocabulary, limit=limit, device=model.device.type):
            sums += totals(log_probs(logits_at(model, batch), batch.targets), batch.owners, len(sums))
        return sums[:, 0]


@functools.cache
def _loaded(directory: Path) -> tuple[Any, Any]:
    model: Any = load_model(directory)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(directory)
