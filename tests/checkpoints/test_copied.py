"""Reading, writing and carrying together: what comes out is a model that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made import by_hand
from tiny import build_model_dir

from untaxed.checkpoints import (
    ShardedWriter,
    Source,
    carry_files,
    check_model_dir,
    fingerprint,
    fit,
    load_model,
    load_tokenizer,
    open_source,
)


def copied(source: Source, out: Path, *, shard_bytes: int = 10**9, dtype: torch.dtype | None = None) -> Path:
    """A model written from its blocks."""
    kinds = {name: kind._replace(dtype=dtype or kind.dtype) for name, kind in source.kinds.items()}
    with ShardedWriter(out, kinds, shard_bytes=shard_bytes, parents=source.directories) as writer:
        for name, kind in kinds.items():
            for start in range(0, kind.numel, 300):
                writer.write(name, start, source.block(name, start, start + 300))
        carry_files(source, writer.directory, kinds=kinds)
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_is_the_model_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    path = build_model_dir(tmp_path / "model", dtype="bfloat16", tied=tied)
    out = copied(open_source(path), tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in path.iterdir())
    assert fingerprint(out) == fingerprint(path)


def test_shards_of_another_dtype_load(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "model")
    out = copied(open_source(path), tmp_path / "out", shard_bytes=10_000, dtype=torch.bfloat16)
    assert len(list(out.glob("*.safetensors"))) > 2
    assert check_model_dir(out) == check_model_dir(path)
    expected = load_model(path).bfloat16().state_dict()
    assert all(
        tensor.equal(expected[name]) for name, tensor in load_model(out, dtype=torch.bfloat16).state_dict().items()
    )


def test_an_adapter_that_unties_and_adds_tokens_loads_as_one_model(tmp_path: Path) -> None:
    base = build_model_dir(tmp_path / "base", tied=True)
    tensors = {"model.embed_tokens.weight": torch.randn(34, 32), "lm_head.weight": torch.randn(34, 32)}
    adapter = by_hand(tmp_path / "adapter", tensors, base_model_name_or_path=str(base))
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<user>", "<end>"])
    tokenizer.save_pretrained(adapter)
    out = copied(open_source(adapter), tmp_path / "out")
    model = load_model(out)
    assert model.lm_head.weight.equal(tensors["lm_head.weight"])
    assert model.model.embed_tokens.weight.equal(tensors["model.embed_tokens.weight"])
    assert len(load_tokenizer(out)) == 34
    assert not (out / "adapter_config.json").exists()


def test_a_tied_and_an_untied_parent_make_a_model_that_loads(tmp_path: Path) -> None:
    tied, untied = (
        build_model_dir(tmp_path / name, tied=name == "tied", seed=len(name)) for name in ("tied", "untied")
    )
    found = fit([open_source(tied), open_source(untied)])
    with ShardedWriter(tmp_path / "out", found.kinds) as writer:
        for name in found.kinds:
            writer.write(name, 0, found.parents[1].block(name))
        carry_files(open_source(tied), writer.directory, kinds=found.kinds, config=found.config)
    expected = load_model(untied).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in load_model(tmp_path / "out").state_dict().items())
