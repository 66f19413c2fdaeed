"""Tiny models after "alignment": the initial one with noise, and one that speaks another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model_dir

from untaxed.checkpoints import load_model, load_tokenizer, save_model

SUITE = """
prompts: {path: prompts.jsonl}
reward: {proxy: "tiny:reward"}
abilities:
  select:
    - {name: choices, kind: multiple_choice, rows: {path: choices.jsonl}}
    - {name: written, kind: exact_match, rows: {path: written.jsonl}}
drift: [forward_kl, {perplexity: {name: texts, rows: {path: texts.jsonl}}}]
max_new_tokens: 6
"""


def rows(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``initial``, ``near``, ``far`` and ``other`` (another tokenizer); not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    build_model_dir(folder / "initial")
    for name, scale in (("near", 0.002), ("far", 0.05)):
        model, generator = load_model(folder / "initial"), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        save_model(model, load_tokenizer(folder / "initial"), folder / name)
    build_model_dir(folder / "other", seed=1)
    words = folder / "other" / "tokenizer.json"
    words.write_text(words.read_text().replace('"w27"', '"v27"'))
    return folder


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A suite file whose written answers are the initial model's own, so that there is something to lose."""
    from untaxed.measuring.sampling import sample
    from untaxed.measuring.suite import Sampling

    folder = tmp_path_factory.mktemp("suite")
    prompts = [f"w{n % 27} w{(5 * n + 1) % 27} w{(n // 5 + 2) % 27}" for n in range(120)]
    drawn = sample(load_model(models / "initial"), load_tokenizer(models / "initial"), prompts, Sampling(2, 0.0))
    rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    rows(folder / "texts.jsonl", [{"text": f"{p} {t}"} for p, t in zip(prompts, drawn.texts)])
    rows(folder / "written.jsonl", [{"prompt": p, "answer": t} for p, t in zip(prompts, drawn.texts) if t.strip()])
    answers = [(text.split() or ["w0"])[0] for text in drawn.texts]
    other = [f"w{(int(answer[1:] or 0) + 3) % 27}" if answer[1:].isdigit() else "w5" for answer in answers]
    rows(
        folder / "choices.jsonl",
        [{"prompt": p, "choices": [a, o], "answer": 0} for p, a, o in zip(prompts, answers, other) if a != o],
    )
    (folder / "suite.yaml").write_text(SUITE)
    return folder / "suite.yaml"
