"""Rewards that a study spec can name: a function by import path, VADER, and a classifier of texts.

All of them judge the completion alone, not the prompt, so that a happy prompt is no merit of the model.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..errors import DataError, SpecError, nearest, require
from ..rows import RowsSource, read_rows, split_by_hash
from .suite import Reward

HELD_OUT = {"train": 0.9, "test": 0.1}


def anchored(path: str, directory: Path) -> str:
    """``FOLDER/module:function`` with the folder that has the module: `directory`, else the working directory.

    A folder that is written starts at `directory`. A module of neither folder stays as it is: an installed one.

    Example:
        >>> anchored("shared/rewards:cheerful", Path("/studies"))
        '/studies/shared/rewards:cheerful'
    """
    folder, name = _divided(path)
    if folder is not None:
        return f"{(directory / folder.expanduser()).resolve()}/{name}"
    found = [here for here in (directory, Path.cwd()) if _file(here, name) is not None]
    return f"{found[0].resolve()}/{name}" if found else path


def source_file(path: str, directory: Path) -> Path | None:
    """The file that ``module:function`` is read from; None where there is no such file. The module is not run."""
    folder, name = _divided(anchored(path, directory))
    if folder is not None:
        return _file(folder, name)
    try:
        found = importlib.util.find_spec(name.partition(":")[0])
    except Exception:  # a package around it is imported and may fail in any way; `imported` says how
        return None
    file = Path(found.origin) if found is not None and found.origin and found.has_location else None
    return file if file is not None and file.is_file() else None


def imported(path: str, directory: Path) -> Reward:
    """The function that ``module:function`` names; a module in `directory`, then in the working directory, comes first.

    Raises:
        SpecError: There is no such module or function, or importing it fails.
    """
    folder, module_and_name = _divided(anchored(path, directory))
    module_name, _, name = module_and_name.partition(":")
    if not module_name or not name:
        raise SpecError(f"reward {path!r}: expected module:function, vader or text_classifier")
    try:
        module = importlib.import_module(module_name) if folder is None else _run(module_name, folder)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise SpecError(f"reward {path!r}: cannot import {module_name}: {error}") from error
    if not callable(getattr(module, name, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SpecError(f"reward {path!r}: {module_name} has no function {name!r}{nearest(name, known)}")
    fn: Reward = getattr(module, name)
    return fn


def _divided(path: str) -> tuple[Path | None, str]:
    """``FOLDER/module:function`` as folder, None where there is none, and ``module:function``."""
    folder, slash, name = path.rpartition("/")
    return (Path(folder or "/") if slash else None), name


def _file(folder: Path, name: str) -> Path | None:
    """The file of ``package.module:function`` in a folder."""
    path = folder.joinpath(*name.partition(":")[0].split("."))
    return next((file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()), None)


def _run(module_name: str, folder: Path) -> ModuleType:
    """Runs a module's file as it is now.

    An import would take a module of the same name that some other folder or an earlier form of the file has left in
    memory, or compiled code of an earlier form.
    """
    file = _file(folder, module_name)
    spec = None if file is None else importlib.util.spec_from_file_location(module_name, file)
    if file is None or spec is None:
        raise ModuleNotFoundError(f"{folder} has no {module_name.replace('.', '/')}.py")
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(module_name)
    sys.modules[module_name] = module  # as an import does: dataclasses, for one, look their module up
    try:
        with _findable(folder):
            exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), vars(module))
    except BaseException:
        sys.modules.pop(module_name, None)
        raise
    finally:
        if before is not None:
            sys.modules[module_name] = before
    return module


@contextmanager
def _findable(directory: Path) -> Iterator[None]:
    entry = str(directory.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


class Vader:
    """Sentiment by a lexicon and rules: VADER's compound score, moved from [-1, 1] to [0, 1].

    0 is as negative as it gets, 0.5 neutral (an empty completion, too), 1 as positive as it gets.

    Source: Hutto and Gilbert 2014, through the package vaderSentiment.
    Differs: (compound + 1) / 2, so that it lies where probabilities lie.
    """

    def __init__(self) -> None:
        module = require("vaderSentiment.vaderSentiment", extra="smollm2")
        self._analyzer = module.SentimentIntensityAnalyzer()

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [(self._analyzer.polarity_scores(text)["compound"] + 1) / 2 for text in completions]


class TextClassifier:
    """The probability that a completion has the positive label, by TF-IDF and logistic regression.

    Fitted anew whenever it is made: the same rows give the same classifier, and nothing is unpickled. Nine tenths of
    the rows, by a hash of their text, are fitted on; the rest give `accuracy`.

    Args:
        source: Labelled rows.
        text: Their field with the text.
        label: Their field with the label.
        positive: The label that the probability is of.

    Attributes:
        accuracy: Share of held-out rows that it labels right.
    """

    def __init__(
        self, source: RowsSource, *, text: str = "text", label: str = "label", positive: int | str = 1
    ) -> None:
        features = require("sklearn.feature_extraction.text", extra="smollm2")
        linear = require("sklearn.linear_model", extra="smollm2")
        parts = split_by_hash(_labelled(source, text, label), text, HELD_OUT)
        texts = {name: [str(row[text]) for row in rows] for name, rows in parts.items()}
        truth = {name: [str(row[label]) == str(positive) for row in rows] for name, rows in parts.items()}
        if len(set(truth["train"])) < 2:
            raise DataError(f"{source.label}: needs rows with label {positive!r} and rows with another one")
        self._features = features.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        # C = 10: texts of a sentence leave little to overfit beside the vectors' unit length.
        self._model = linear.LogisticRegression(C=10.0, max_iter=1000)
        self._model.fit(self._features.fit_transform(texts["train"]), truth["train"])
        self.accuracy = self._model.score(self._features.transform(texts["test"]), truth["test"])

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        probabilities: list[float] = self._model.predict_proba(self._features.transform(completions))[:, 1].tolist()
        return probabilities


def _labelled(source: RowsSource, text: str, label: str) -> list[dict[str, object]]:
    def check(row: dict[str, object]) -> None:
        for field in (text, label):
            if row.get(field) is None:
                raise ValueError(f"no value in column {field!r}{nearest(field, row)}")

    return read_rows(source, check)
