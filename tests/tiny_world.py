"""A study that takes seconds: the tiny model, files of its own, and a spec that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import WORDS


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts() -> list[dict[str, Any]]:
    return [{"prompt": f"{WORDS[i % 28]} {WORDS[(5 * i + i // 28) % 28]}"} for i in range(120)]


def preferences() -> list[dict[str, Any]]:
    return [
        {**row, "chosen": f" {WORDS[(2 * i) % 28]} <eos>", "rejected": f" {WORDS[(2 * i + 1) % 28]} <eos>"}
        for i, row in enumerate(prompts()[:48])
    ]


def known_answers(initial: Path) -> list[dict[str, Any]]:
    """Questions that the model answers rightly by construction: what it says most readily after each prompt."""
    import torch

    from untaxed.checkpoints import load_model, load_tokenizer

    model, tokenizer = load_model(initial), load_tokenizer(initial)
    rows = []
    for row in prompts():
        with torch.no_grad():
            logits = model(**tokenizer(row["prompt"], return_tensors="pt")).logits[0, -1]
        rows.append({**row, "answer": " " + WORDS[int(logits[4:].argmax())]})  # the first four are no words
    return rows


def build_world(initial: Path, folder: Path) -> dict[str, Any]:
    """A spec, as plain values, over the tiny model: dpo, four steps, two measurements. Its rows lie in `folder`."""
    texts = [{"text": " ".join(WORDS[(i + k) % 28] for k in range(12))} for i in range(40)]
    questions = {"path": write_rows(folder / "questions.jsonl", known_answers(initial))}
    ability = {"kind": "exact_match", "rows": questions, "limit": 30}
    return {
        "name": "tiny",
        "models": {"initial": str(initial)},
        "algorithm": {"name": "dpo", "max_steps": 4, "learning_rate": 5e-3, "batch_size": 8, "warmup_steps": 0},
        "data": {
            "prompts": {"path": write_rows(folder / "prompts.jsonl", prompts())},
            "preferences": {"path": write_rows(folder / "preferences.jsonl", preferences())},
        },
        "methods": ["plain", "early_stopping", {"averaging": {"initial_share": {"sweep": [0.2, 0.6]}}}],
        "measure": {
            "reward": {"proxy": "tiny:reward"},
            "abilities": {"select": [{"name": "one", **ability}], "report": [{"name": "two", **ability}]},
            "drift": ["forward_kl", {"perplexity": {"rows": {"path": write_rows(folder / "texts.jsonl", texts)}}}],
            "every": 2,
            "samples": 24,
            "max_new_tokens": 4,
        },
        "seeds": [0],
    }
