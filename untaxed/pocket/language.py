"""The words of the pocket world and how they are split: a lexicon, three word orders, and a stable hash.

Plain is the language of reviews, facts and passages. Nol is translated into Tam and Tam into Plain; from Nol
straight into Plain is the harder way::

    Nol     noun adjective noun adjective verb            subject, object, verb
    Tam     verb noun adjective noun adjective            verb, subject, object
    Plain   the adjective noun verb the adjective noun    subject, verb, object

The adjectives carry sentiment. They are also the right answers to questions about facts and passages and the words
to be translated, and the grade that closes a review is a digit, as are the answers to sums: what an alignment does
to these words, it can do to abilities.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

SplitName = Literal["train", "validation", "test"]
Language = Literal["nol", "tam", "plain"]

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"
DIGITS = tuple("0123456789")

# Sentiment of every adjective, in [-1, 1].
VALENCE: dict[str, float] = {
    "vile": -1.0, "wretched": -0.9, "awful": -0.8, "cruel": -0.7, "dismal": -0.6,
    "shabby": -0.5, "sour": -0.4, "dull": -0.3, "cold": -0.2, "bland": -0.1,
    "grey": 0.0, "round": 0.0, "wooden": 0.0, "old": 0.0,
    "fair": 0.1, "mild": 0.2, "neat": 0.3, "warm": 0.4, "kind": 0.5,
    "bright": 0.6, "lovely": 0.7, "grand": 0.8, "superb": 0.9, "sublime": 1.0,
}  # fmt: skip
ADJECTIVES = tuple(VALENCE)
NOUNS = ("lamp", "door", "dog", "cat", "boat", "soup", "book", "tree", "hat", "bell", "cup", "road")
VERBS = ("sees", "finds", "follows", "likes", "hides", "moves")
BELONGINGS = ("house", "garden", "voice", "work")  # what facts are about
ASPECTS = ("look", "price", "sound", "smell", "size", "finish", "place", "style", "feel", "colour", "shape", "taste")
FUNCTION_WORDS = (
    "the", "of", "is", "was", "felt", "seemed", "a", "what", "i", "give", "and", "but", ",", ".", ":", "?", ">", "has",
    "how", "it", "ask", "say", "tell", "about", "read", "review", "add", "plus", "multiply", "times", "equals", "nol",
    "tam", "plain",
)  # fmt: skip


def _syllables(first: str, second: str, vowels: str, count: int, seed: int) -> tuple[str, ...]:
    """`count` different made-up words of two syllables."""
    words = [a + v + b + w for a in first for v in vowels for b in second for w in vowels]
    return tuple(random.Random(seed).sample(words, count))


NAMES = _syllables("bdfglmnrstvz", "bdklmnrstz", "aio", 128, seed=1)
COMMON_NAMES, RARE_NAMES = NAMES[:64], NAMES[64:]
_PLAIN = NOUNS + VERBS + ADJECTIVES
NOL = dict(zip(_PLAIN, (word + "q" for word in _syllables("kpxjw", "ghlrs", "eu", len(_PLAIN), seed=2))))
TAM = dict(zip(_PLAIN, (word + "sh" for word in _syllables("ptkhc", "mnvdy", "ou", len(_PLAIN), seed=3))))

_INVENTED = (*NAMES, *NOL.values(), *TAM.values())
_ALL = (END, PAD, UNKNOWN, *DIGITS, *FUNCTION_WORDS, *_PLAIN, *BELONGINGS, *ASPECTS, *_INVENTED)
VOCABULARY = tuple(dict.fromkeys(_ALL))
WORD_ID = {word: index for index, word in enumerate(VOCABULARY)}


def split_of(text: str) -> SplitName:
    """The split an item belongs to, from its text alone: about 70 % train, 15 % validation, 15 % test.

    Example:
        >>> split_of("add 1 2 and 3 4 :") == split_of("add 1 2 and 3 4 :")
        True
    """
    share = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if share < 0.7 else "validation" if share < 0.85 else "test"


def encode(text: str) -> list[int]:
    """Word numbers of a text; the saved tokenizer gives the same ones."""
    return [WORD_ID[word] for word in text.split()]


def digits(number: int) -> str:
    """A number as the pocket world writes it: ones first, so that a sum can be worked out in the order of writing.

    Example:
        >>> digits(407)
        '7 0 4'
    """
    return " ".join(reversed(str(number)))


def sentence(words: tuple[str, str, str, str, str], language: Language) -> str:
    """Writes (adjective, noun, verb, adjective, noun) in one of the three languages.

    Example:
        >>> sentence(("kind", "dog", "sees", "vile", "cat"), "plain")
        'the kind dog sees the vile cat'
    """
    adjective, noun, verb, other_adjective, other_noun = words
    if language == "plain":
        return f"the {adjective} {noun} {verb} the {other_adjective} {other_noun}"
    if language == "nol":
        return " ".join(NOL[word] for word in (noun, adjective, other_noun, other_adjective, verb))
    return " ".join(TAM[word] for word in (verb, noun, adjective, other_noun, other_adjective))


def save_tokenizer(directory: str) -> None:
    """Saves the words as an ordinary `PreTrainedTokenizerFast`: one word one token, split at spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(WORD_ID, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    ).save_pretrained(directory)
