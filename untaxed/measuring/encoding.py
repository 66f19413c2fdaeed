"""From texts to tokens: what is scored, and given what.

The rule of the border, used everywhere: prompt and answer are joined by one space, unless the prompt is empty or
ends in white space or the answer starts with it; the joint text is tokenised as a whole, because that is the text
the model has seen; the answer's tokens are those after the longest common prefix with the prompt's own tokens. Where
tokenisation merges across the border, the merged token belongs to the answer and the context is a token shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ..errors import DataError
from .batching import Scored

T = TypeVar("T")


class Remembered:
    """Keeps what was computed for a tokenizer as long as the tokenizer lives: a study asks the same at every step."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    def get(self, tokenizer: Any, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` returned for this tokenizer and key the first time."""
        known = self._known.setdefault(tokenizer, {})
        if key not in known:
            known[key] = compute()
        value: T = known[key]
        return value


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, behind the tokens that the tokenizer itself puts before a text.

    An end-of-text token that the tokenizer would put behind is left out: more follows.
    """
    if not texts:
        return []
    leading = list(tokenizer("")["input_ids"])
    if leading[-1:] == [tokenizer.eos_token_id] and leading != [tokenizer.bos_token_id]:
        leading.pop()
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)
    return [leading + list(ids) for ids in encoded["input_ids"]]


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """As `encode`; before an empty prompt stands the beginning-of-text token, else the end-of-text token."""
    return [ids or opening(tokenizer) for ids in encode(tokenizer, prompts)]


def chat_prompts(tokenizer: Any, prompts: Sequence[str], where: str) -> list[str]:
    """Every prompt as a user's message in the model's chat template, up to where the answer begins.

    A beginning-of-text token that the tokenizer itself puts before a text is left to it.

    Raises:
        DataError: The tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(f"{where}: `chat: true`, and the tokenizer has no chat template; leave `chat` out")
    messages = [[{"role": "user", "content": one}] for one in prompts]
    made: list[str] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    twice = tokenizer.bos_token is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return [text.removeprefix(tokenizer.bos_token) for text in made] if twice else made


def opening(tokenizer: Any) -> list[int]:
    """The token before a text that has nothing before it."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise DataError("an empty prompt needs a tokenizer with a bos or eos token; give the prompt at least one word")


def join(prompt: str, answer: str) -> str:
    """Prompt and answer as one text, with one space between them where none is there."""
    glued = not prompt or prompt[-1].isspace() or answer[:1].isspace()
    return prompt + answer if glued else f"{prompt} {answer}"


def encode_answers(
    tokenizer: Any, questions: Sequence[tuple[str, Sequence[str]]], *, eos: bool, where: str
) -> list[list[Scored]]:
    """Every answer after its question's prompt, all answers of a question with the same context.

    Args:
        tokenizer: The model's; called once for all texts, which takes a third of the time of a call a question.
        questions: What is given, and what is scored after it; where tokens merge across the border, the shortest
            context holds for all answers.
        eos: Whether the end-of-text token belongs to every answer.
        where: Names the questions in errors, which add the number: "facts test item".
    """
    if eos and tokenizer.eos_token_id is None:
        raise DataError(f"{where} 0: the answer must end with eos, but the tokenizer has no eos token")
    texts = [text for prompt, answers in questions for text in (prompt, *(join(prompt, one) for one in answers))]
    encoded = iter(encode(tokenizer, texts))
    last = [tokenizer.eos_token_id] if eos else []
    return [
        _question(tokenizer, next(encoded), answers, [next(encoded) for _ in answers], last, f"{where} {number}")
        for number, (_, answers) in enumerate(questions)
    ]


def _question(
    tokenizer: Any, context: list[int], answers: Sequence[str], joints: list[list[int]], last: list[int], where: str
) -> list[Scored]:
    start = min((_common(context, joint) for joint in joints), default=0)
    for answer, joint in zip(answers, joints, strict=True):
        if len(joint) <= start or not answer.strip():
            raise DataError(f"{where}: the answer {answer!r} has no token to score")
    first = [] if start else opening(tokenizer)
    return [Scored((*first, *joint, *last), start + len(first), where) for joint in joints]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
