"""The errors a user can meet, and nothing else.

    UntaxedError                 the work failed                        exit code 1
    ├── RunFailed                one run of a study stopped (NaN loss, a reward that broke)
    ├── Undefined                a measure has no number here (a judge that does not answer)
    └── UsageError               the call or a file given is wrong      exit code 2
        ├── SpecError            a key or value of a spec, a suite or the command line
        ├── CheckpointError      a model directory that cannot be used
        ├── DataError            rows that cannot be used, a reward that returns nonsense
        ├── StoreError           a study directory that cannot be used
        ├── Unsupported          a method that cannot work here, with the way out
        └── MissingExtra         an optional package, with the `pip install` that brings it

Every message is one line that names what, where and the remedy.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

INTERRUPTED = "interrupted: what was finished is kept; give the same command again to go on"  # exit code 130
UNSTARTED = "interrupted before anything was begun; give the same command again"  # the same, during imports


class UntaxedError(Exception):
    """The work failed."""


class RunFailed(UntaxedError):
    """One run of a study stopped; the others go on."""


class Undefined(UntaxedError):
    """A measure has no number here; the others do."""


class UsageError(UntaxedError, ValueError):
    """What the user gave is wrong."""


class SpecError(UsageError):
    """A key or value of a spec, a suite or the command line is wrong."""


class CheckpointError(UsageError):
    """A model directory cannot be used."""


class DataError(UsageError):
    """Rows cannot be used, or a reward returned nonsense."""


class StoreError(UsageError):
    """A study directory cannot be used."""


class Unsupported(UsageError):
    """A method cannot work here; the message says why and what to do instead."""


class MissingExtra(UsageError, ImportError):
    """An optional package is not installed."""


LISTED = 60  # known words that one message lists; nobody reads more


def nearest(word: str, known: Iterable[str]) -> str:
    """Says which known word was probably meant, as the tail of an error message.

    Example:
        >>> nearest("tie", ["ties", "dare"])
        "; did you mean 'ties'? known: dare, ties"
    """
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{guess} known: {', '.join(words)}" if len(words) <= LISTED else f"{guess} {len(words)} are known"


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, where a list of all would be too long; empty where none is near.

    Example:
        >>> meant("lm_haed", ["lm_head", "norm"])
        " (did you mean 'lm_head'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def short(value: object, most: int = 40) -> str:
    """A value as an error message shows it: its `repr`, cut.

    Example:
        >>> short("a text that goes on and on", 12)
        "'a text t..."
    """
    try:
        text = repr(value)
    except Exception:  # of an integer with thousands of digits, of somebody's own class
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."


def last_line(error: BaseException) -> str:
    """The last line of what an error says, where libraries put the point; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def require(module: str, *, extra: str) -> ModuleType:
    """Imports an optional module, or says which `pip install` brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtra(f"{module} is not installed; pip install 'untaxed[{extra}]'") from None
