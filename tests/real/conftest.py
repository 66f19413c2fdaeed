"""A study of a tiny random model on made-up rows, prepared as a real one is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS

from untaxed.studies.spec import StudySpec, parse_spec


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """200 texts of six words, with a label."""
    file = tmp_path / "reviews.jsonl"
    texts = (" ".join(WORDS[(n * k + k * k) % 28] for k in range(1, 7)) for n in range(200))
    file.write_text(
        "".join(json.dumps({"text": f"{text} w{n % 28}", "label": n % 2}) + "\n" for n, text in enumerate(texts))
    )
    return file


@pytest.fixture
def make_spec(tiny_initial: Path, reviews: Path) -> Callable[..., StudySpec]:
    """Builds the spec; keyword arguments replace whole top-level keys."""

    def make(**changes: Any) -> StudySpec:
        rows = {"path": str(reviews)}
        ability = {
            "name": "next",
            "kind": "multiple_choice",
            "rows": {**rows, "columns": {"prompt": "text", "answer": "label"}, "where": {"label": 1}},
            "template": "{prompt}",
            "choices": ["text", "label"],
        }
        raw = {
            "name": "tiny",
            "models": {
                "pretrained": str(tiny_initial),
                "initial": {"sft": {"rows": rows, "max_steps": 3, "batch_size": 4, "learning_rate": 1e-3}},
            },
            "algorithm": {"name": "dpo", "max_steps": 2, "batch_size": 2},
            "data": {
                "prompts": {**rows, "columns": {"prompt": "text"}, "opening_words": 2},
                "preferences": {"sampled": {"prompts": 12, "per_prompt": 3, "max_new_tokens": 4}},
            },
            "methods": ["plain"],
            "measure": {"reward": "tiny:reward", "abilities": {"select": [ability]}, "samples": 4},
        }
        return parse_spec(raw | changes)

    return make
