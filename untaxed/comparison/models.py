"""The models under measurement: opened, hashed and named, and what of two of them can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import check_model_dir, fingerprint, load_tokenizer
from ..errors import CheckpointError, DataError, SpecError
from ..measuring import Subject
from ..measuring.suite import Measure, Suite
from ..studies.cache import content_key, file_digest
from ..studies.recipes import named_model
from ..studies.store import read_json
from .journal import KeptJournal
from .scores import code, folder
from .suite_file import Loaded

BESIDE = (  # files that change scores, beside those that training depends on
    *("chat_template.jinja", "generation_config.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json"),
)


@dataclass
class Model:
    """A model under measurement, loaded when something of it has to be measured."""

    name: str
    path: Path
    digest: str
    tokenizer: Any
    journal: KeptJournal
    subject: Subject | None = None


def opened(path: str | Path, name: str | None, directory: Path) -> Model:
    """A model's folder, checked and hashed; its weights are not read. Scores lie in `directory`."""
    where = named_model(str(path))
    check_model_dir(where)
    _check_kind(where)
    content = _content(where)
    journal = KeptJournal(folder(directory), f"{content} {code()}")
    called = where.resolve() if Path(path).name in ("", "..") else path  # a folder given as `.` has a name all the same
    return Model(name or str(called).rstrip("/"), where, content, load_tokenizer(where), journal)


def _check_kind(model: Path) -> None:
    named = read_json(model / "config.json").get("architectures") or [""]
    if "Classification" in str(named[0]):
        raise CheckpointError(
            f"{model} is a {named[0]}, which writes no texts; a reward model stands in the suite: "
            "`reward: {reward_model: …}`"
        )


def _content(model: Path) -> str:
    """A hash of every file of a model that scores depend on."""
    beside = [file for name in BESIDE if (file := model / name).is_file()]
    own = fingerprint(model)
    return content_key("model", [own, *map(file_digest, beside)]) if beside else own


def tell_apart(models: Iterable[Model], start: Model) -> None:
    """Gives short names where they differ, from that of the initial model too; whole paths where they do not."""
    given = list(models)
    for path, count in Counter(model.path.resolve() for model in given).items():
        if count > 1:
            raise SpecError(f"{path} is given {count} times; name every model once")
    short = Counter(Path(model.name).name for model in given)
    for model in given:
        if short[Path(model.name).name] == 1:
            model.name = Path(model.name).name
        if model.name == start.name:
            model.name = str(model.path.resolve())


def check_chat(loaded: Loaded, models: Iterable[Model]) -> None:
    """Raises `DataError` where the suite asks in a chat template that a model does not have."""
    for model in models:
        if loaded.chat and getattr(model.tokenizer, "chat_template", None) is None:
            raise DataError(
                f"{model.path}: the suite has `chat: true`, and its tokenizer has no chat template; leave `chat` out, "
                "or save the tokenizer with one"
            )


def taken(model: Model, start: Model, suite: Suite) -> tuple[list[Measure], dict[str, str]]:
    """The measures that are taken of a model, and by key why others cannot be."""
    if model is start:  # it would be compared with itself
        return [one for one in suite.measures if one.against is None], {}
    why = other_tokens(model, start) or _other_vocabulary(model, start)
    if why is None:
        return list(suite.measures), {}
    other = {one.key: why for one in suite.measures if one.against == "tokens"}
    return [one for one in suite.measures if one.key not in other], other


def other_tokens(model: Model, start: Model) -> str | None:
    """Why numbers that count tokens cannot be compared with initial's; None where they can."""
    same = _same_tokens(model.tokenizer, start.tokenizer)
    return None if same else "its tokenizer is not initial's, so that tokens cannot be compared"


def _other_vocabulary(model: Model, start: Model) -> str | None:
    ours, theirs = (_vocabulary(one.path) for one in (model, start))
    if ours == theirs or not (ours and theirs):
        return None
    return f"its probabilities are of {ours:,} tokens and initial's of {theirs:,}, so that they cannot be compared"


def _vocabulary(model: Path) -> int:
    """How many tokens a model gives probabilities to; 0 where its configuration does not say."""
    config = read_json(model / "config.json")
    return int((config.get("text_config") or config).get("vocab_size") or 0)


def _same_tokens(first: Any, second: Any) -> bool:
    return first is second or bool(first.get_vocab() == second.get_vocab())


def same_tokenizer(first: Any, second: Any) -> bool:
    """Whether prompts become the same tokens and texts end at the same one."""
    own = ("chat_template", "bos_token_id", "eos_token_id")
    return _same_tokens(first, second) and all(getattr(first, one) == getattr(second, one) for one in own)
