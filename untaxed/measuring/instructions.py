"""Instructions whose following can be checked by a program: one function a kind of instruction.

Source: Zhou et al. 2023 (IFEval), arXiv:2311.07911, whose ids, settings and strict rules these are.
Differs: sentences end at a mark followed by white space, where IFEval asks NLTK's Punkt; words in capitals are those of
a regular expression; languages are told by py3langid, where IFEval asks langdetect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import nearest
from .languages import language_of

Check = Callable[..., bool]
RELATIONS = ("at least", "less than")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|Inc|Ltd|Co|[A-Z])\.$")


def all_followed(answer: str, instructions: Sequence[Mapping[str, Any]]) -> float:
    """1 where every instruction is followed: IFEval's strict accuracy a prompt."""
    return float(all(followed(answer, one) for one in instructions))


def share_followed(answer: str, instructions: Sequence[Mapping[str, Any]]) -> float:
    """The share of a prompt's instructions that are followed."""
    return sum(followed(answer, one) for one in instructions) / len(instructions)


def followed(answer: str, instruction: Mapping[str, Any]) -> bool:
    """Whether an answer follows one instruction, ``{"id": …, "kwargs": {…}}``; an empty answer follows none."""
    return bool(answer.strip()) and CHECKS[instruction["id"]](answer, **instruction["kwargs"])


def check_instruction(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The instruction as `followed` takes it; settings that are null are not there.

    Raises:
        ValueError: The id or a setting is not known, or a setting is lacking.
    """
    if name not in CHECKS:
        raise ValueError(f"unknown instruction {name!r}{nearest(name, CHECKS)}")
    given = {key: value for key, value in settings.items() if value is not None}
    code = CHECKS[name].__code__
    wanted = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    if set(given) != set(wanted):
        raise ValueError(f"instruction {name!r}: expected the settings {list(wanted)}, got {sorted(given)}")
    for key, value in given.items():
        if key.endswith("relation") and value not in RELATIONS:
            raise ValueError(f"unknown relation {value!r}; known: {', '.join(RELATIONS)}")
    return {"id": name, "kwargs": given}


def _compared(count: int, relation: str, number: int) -> bool:
    return count >= number if relation == "at least" else count < number


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: they end at ``.``, ``!``, ``?`` before white space, or at an empty line."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        start = 0
        for end in re.finditer(r"[.!?]+[\"'”’)\]]*(?=\s|$)", paragraph):
            if not _ABBREVIATIONS.search(paragraph[start : end.end()]):
                sentences.append(paragraph[start : end.end()])
                start = end.end()
        sentences.append(paragraph[start:])
    return [one.strip() for one in sentences if re.search(r"\w", one)]


# --- words -----------------------------------------------------------------------------------------------------------


def _existence(text: str, *, keywords: Sequence[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def _forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def _letter(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


# --- lengths ---------------------------------------------------------------------------------------------------------


def _number_words(text: str, *, num_words: int, relation: str) -> bool:
    return _compared(len(words_of(text)), relation, num_words)


def _number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return _compared(len(sentences_of(text)), relation, num_sentences)


def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are parted by ``***``; one at the beginning or end may be empty, none between."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    return all(part.strip() for part in parts[1:-1]) and sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by two line ends; the n-th begins with a word, whatever marks stand around it."""
    parts = [part for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# --- what the answer holds -------------------------------------------------------------------------------------------


def _placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker in any case, with or without a space after its points, as in ``P. P. S``."""
    loose = r"\.\s?".join(map(re.escape, postscript_marker.split(".")))
    return re.search(loose, text, re.IGNORECASE) is not None


def _bullets(text: str, *, num_bullets: int) -> bool:
    stars, dashes = (re.findall(one, text, re.MULTILINE) for one in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return len(stars) + len(dashes) == num_bullets


def _highlights(text: str, *, num_highlights: int) -> bool:
    """Parts between stars, and once more those between double stars, as IFEval counts them; empty ones do not count."""
    single = [one for one in re.findall(r"\*[^\n*]*\*", text) if one.strip("*").strip()]
    double = [one for one in re.findall(r"\*\*[^\n*]*\*\*", text) if one[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)) - 1 >= num_sections


def _title(text: str) -> bool:
    return any(one.strip("<> ") for one in re.findall(r"<<[^\n]+>>", text))


def _json(text: str) -> bool:
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inner)
    except ValueError:
        return False
    return True


def _constrained(text: str) -> bool:
    return any(one in text for one in _CONSTRAINED)


def _two_responses(text: str) -> bool:
    """Two different answers parted by six stars; what stands before the first or after the last may be empty."""
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    whole = [part.strip() for part in parts if part.strip()]
    return len(whole) == 2 and whole[0] != whole[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


# --- case, marks, beginning and end ----------------------------------------------------------------------------------


def _capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"\w[\w'’-]*", text)
    return _compared(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capital(text: str) -> bool:
    return text.isupper() and language_of(text.lower()) == "en"  # a language's words are known in small letters


def _english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def _language(text: str, *, language: str) -> bool:
    return language_of(text) == language


def _no_comma(text: str) -> bool:
    return "," not in text


def _ends_with(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: Mapping[str, Check] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
}
