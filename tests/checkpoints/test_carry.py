"""What a new checkpoint takes over beside weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made import HEAD, NORM, directory

from untaxed.checkpoints import Kind, carry_files, open_source

KINDS = {NORM: Kind(torch.bfloat16, (100,)), "inv_freq": Kind(torch.float32, (2,)), "n": Kind(torch.int64, (999,))}
CARRIED = [
    "LICENSE", "USE_POLICY.md", "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json",
    "merges.txt", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json",
]  # fmt: skip
LEFT = [
    "README.md", "modeling.py", "pytorch_model.bin", "optimizer.pt", "training_args.bin", "trainer_state.json",
    "model.gguf", "consolidated.safetensors", "pytorch_model.bin.index.json", "other.safetensors.index.json",
    ".hidden.json", "scheduler.pt", "rng_state.pth", "all_results.json", "x.pkl", "requirements.txt",
]  # fmt: skip


def test_everything_but_weights_pickles_and_code_is_carried(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", {NORM: torch.ones(2), HEAD: torch.ones(1, 2)}, shards=2)
    for name in (*CARRIED, *LEFT):
        if name != "config.json":
            (path / name).write_text(json.dumps({"of": name}))
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (path / "checkpoint-10").mkdir()
    (path / "checkpoint-10" / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    names = carry_files(open_source(path), tmp_path / "out", kinds=KINDS)
    there = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert names == there == sorted([*CARRIED, "additional_chat_templates/tools.jinja"])
    for name in set(CARRIED) - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "key"),
    [({}, "torch_dtype"), ({"torch_dtype": "float32"}, "torch_dtype"), ({"dtype": "float16"}, "dtype")],
)
def test_the_configuration_says_the_dtype_that_is_written(tmp_path: Path, config: dict[str, str], key: str) -> None:
    inner = {"dtype": "float16", "hidden_size": 2}
    source = open_source(directory(tmp_path / "model", {NORM: torch.ones(2)}, text_config=inner, name="ä", **config))
    (tmp_path / "out").mkdir()
    carry_files(source, tmp_path / "out", kinds=KINDS)
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written == {
        "model_type": "llama",
        "name": "ä",
        "text_config": {"dtype": "bfloat16", "hidden_size": 2},
        key: "bfloat16",
    }


def test_a_tokenizer_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", {NORM: torch.ones(2)})
    other = directory(tmp_path / "other", {NORM: torch.ones(2)})
    for name in ("tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        (path / name).write_text('{"of": "model"}')
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (other / name).write_text('{"of": "other"}')
    (tmp_path / "out").mkdir()
    names = carry_files(open_source(path), tmp_path / "out", kinds=KINDS, config={"a": 1}, tokenizer=other)
    assert names == ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"]
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"of": "other"}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"of": "model"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"a": 1, "torch_dtype": "bfloat16"}
