"""The model card of a merged model: how it was made, of what, and what is known of its tax."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from ._plan import Plan

HEAD: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "untaxed"]}


def card(plan: Plan, name: str) -> str:
    """Markdown with a YAML head, as model hubs read it.

    Args:
        plan: Of the merge.
        name: What the model is called.
    """
    from .. import __version__

    parents = [label for label in plan.recipe.parents if "/" in label and not label.startswith((".", "/", "~"))]
    head = yaml.safe_dump({**HEAD, **({"base_model": parents} if parents else {})}, sort_keys=False)
    recipe = yaml.safe_dump(plan.recipe.raw, sort_keys=False, allow_unicode=True)
    lines = [
        f"---\n{head}---",
        f"# {_plain(name)}",
        f"Merged by `{plan.recipe.merge_method}`, without training.",
        "## Recipe",
        f"```yaml\n{recipe.replace('```', '` ` `')}```",
        "## Parents",
        "\n".join(f"- `{_plain(label)}`{_role(plan, label)}" for label in plan.parents),
    ]
    if plan.notes:
        lines += ["## What was done to make them fit", "\n".join(f"- {_plain(note)}" for note in plan.notes)]
    lines += [
        "## Tax",
        "Not measured: what the merge gained and what it forgot must be measured on the model itself.",
        "## Made with",
        f"untaxed {__version__}, torch {torch.__version__}; computed in float32, rounded once.",
    ]
    return "\n\n".join(lines) + "\n"


def _role(plan: Plan, label: str) -> str:
    return (
        " (configuration and tokenizer)"
        if label == plan.recipe.main == plan.recipe.tokenizer_model
        else (" (configuration)" if label == plan.recipe.main else "")
    )


def _plain(text: str) -> str:
    """Without what Markdown or HTML would read."""
    return text.replace("`", "'").replace("<", "&lt;").replace("\n", " ")
