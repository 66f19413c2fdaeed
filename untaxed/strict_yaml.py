"""Reads YAML strictly (no duplicate keys, `1e-6` is a number, `on` a word) and applies ``a.b=c`` changes to it."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .errors import SpecError

MOST_VALUES = 100_000  # that a document may stand for
BEYOND = 10**12  # a count goes no further


class _Loader(yaml.SafeLoader):
    """Safe, and stricter than PyYAML where that is silent."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()  # aliases are names still: nothing is large yet
        if node is not None and (size := _size(node, {})) > MOST_VALUES:
            what = f"stands for {'at least ' * (size >= BEYOND)}{size:,} values once its aliases are put in"
            raise yaml.constructor.ConstructorError(None, None, f"{what}; at most {MOST_VALUES:,} are read", None)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise yaml.constructor.ConstructorError(None, None, "an alias stands inside what it names", node.start_mark)
        return super().construct_object(node, deep=True)  # deep: so that the line above sees every alias

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, those behind its aliases among them; each node is counted once."""
    if id(node) not in known:
        known[id(node)] = 1  # for an alias inside what it names, which is refused later
        inner = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.CollectionNode):
            known[id(node)] = min(1 + sum(_size(one, known) for one in inner), BEYOND)
        elif half := re.search(r"[\ud800-\udfff]", node.value):
            problem = f"{half[0]!r} is half of a character that was cut in two; write the whole character"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return known[id(node)]


# PyYAML follows YAML 1.1, where 1e-6 without a dot is a string; everyone means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


# It also makes truth values of on, off, yes and no; as everywhere else only true and false are that.
_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _TRUTH]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(path: Path) -> Any:
    """Reads a YAML file; a `SpecError` names file, line and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise SpecError(f"{path}: cannot be read: {reason}") from None
    value = parse_yaml(text, where=str(path))
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected keys and values, got {'nothing' if value is None else repr(value)[:60]}")
    return value


def parse_yaml(text: str, *, where: str) -> Any:
    """Parses YAML text; `where` begins the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise SpecError(f"{where}: is nested too deeply") from None
    except ValueError as error:  # a date or number that looks right and is none, such as 2024-99-99
        raise SpecError(f"{where}: not YAML: {error}; put texts in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{where}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None


def apply_sets(raw: dict[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """Returns `raw` with changes such as ``methods.1.kl.beta=0.3``; the value is YAML.

    What a key steps into and the file does not have is made: a list for ``0``, else a mapping. A method written as its
    bare name gets settings.
    """
    changed = copy.deepcopy(raw)
    for change in sets:
        path, equals, text = change.partition("=")
        if not equals or not path.strip() or not text.strip():
            raise SpecError(f"--set {change}: expected KEY=VALUE, such as algorithm.max_steps=20, or =null for none")
        where = f"--set {change}"
        _put(changed, path.strip().split("."), parse_yaml(text, where=where), where)
    return changed


def _put(value: Any, keys: list[str], new: Any, where: str) -> None:
    for key, below in itertools.pairwise(keys):
        index = _index(value, key, where)
        found = value.get(index) if isinstance(value, dict) else value[index]
        if found is None or found == []:
            value[index] = [None] if below == "0" else {}
        elif found == below:
            value[index] = {below: {}}
        value = value[index]
    value[_index(value, keys[-1], where)] = new


def _index(value: Any, key: str, where: str) -> Any:
    if isinstance(value, dict):
        return key
    if not isinstance(value, list):
        raise SpecError(f"{where}: nothing lies below {value!r}, so there is no {key!r}")
    if not key.isdecimal() or int(key) >= len(value):
        raise SpecError(
            f"{where}: expected a number from 0 to {len(value) - 1} in place of {key!r};"
            " to add items, give the whole list"
        )
    return int(key)
