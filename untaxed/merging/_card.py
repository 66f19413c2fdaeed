"""The model card of a merged model: how it was made, of what, and what is known of its tax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from ..checkpoints import is_directory, parts_of
from ._plan import Plan

HEAD: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "untaxed"]}
UNMEASURED = "Not measured: what the merge gained and what it forgot must be measured on the model itself."


def card(plan: Plan, name: str) -> str:
    """The card of a plan's model; `name` is what the model is called."""
    parents = {label: _role(plan, label) for label in plan.parents}
    parts = [part for label in plan.recipe.parents for part in parts_of(label)]
    ids = list(dict.fromkeys(part.partition("@")[0] for part in parts if not is_directory(part)))
    how = f"Merged by `{plan.recipe.merge_method}`, without training."
    return model_card(name, how, plan.recipe.raw, parents, notes=plan.notes, ids=ids)


def model_card(
    name: str,
    how: str,
    recipe: Mapping[str, Any],
    parents: Mapping[str, str],
    *,
    notes: Sequence[str] = (),
    ids: Sequence[str] = (),
    tax: str = UNMEASURED,
) -> str:
    """Markdown with a YAML head, as model hubs read it.

    Args:
        name: What the model is called.
        how: A sentence on how it was made.
        recipe: The same in keys and values.
        parents: The models it was made of, and what each gave.
        notes: What was done to make them fit.
        ids: Those that a hub knows.
        tax: What is known of it, in Markdown.
    """
    from .. import __version__

    head = yaml.safe_dump({**HEAD, **({"base_model": list(ids)} if ids else {})}, sort_keys=False)
    said = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).replace("```", "` ` `")
    lines = [f"---\n{head}---", f"# {plain(name)}", how, "## Recipe", f"```yaml\n{said}```", "## Parents"]
    lines.append("\n".join(f"- `{plain(label)}`{f' ({role})' if role else ''}" for label, role in parents.items()))
    if notes:
        lines += ["## What was done to make them fit", "\n".join(f"- {plain(note)}" for note in notes)]
    made = f"untaxed {__version__}, torch {torch.__version__}; computed in float32, rounded once."
    return "\n\n".join([*lines, "## Tax", tax, "## Made with", made]) + "\n"


def plain(text: str) -> str:
    """Without what Markdown or HTML would read."""
    return text.replace("`", "'").replace("<", "&lt;").replace("|", "/").replace("\n", " ")


def _role(plan: Plan, label: str) -> str:
    if label != plan.recipe.main:
        return "tokenizer" if label == plan.recipe.tokenizer_model else ""
    return "configuration and tokenizer" if label == plan.recipe.tokenizer_model else "configuration"
