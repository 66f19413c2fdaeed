"""What a merge costs beside mergekit's, and beside `cp`: three models of 630 M parameters in bf16, made on the spot.

    python benchmarks/merging.py [--folder DIR] [--runs N] [--skip-mergekit]

Each case is a process of its own, both libraries in turn; its time is until the files are on the disk (`sync`). Beside
it stands what the call alone took, without starting Python and importing torch (some seconds, whatever the models'
size). Memory is the highest anonymous resident set that was seen, sampled every 20 ms. Throughput, of the call, counts
bytes of the parents, once, plus bytes written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, VOCABULARY = 1536, 4096, 18, 32000
NAMES = ("m0", "m1", "m2")
RECIPES = {
    "linear": {"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1 / 3}} for n in NAMES]},
    "ties": {
        "merge_method": "ties",
        "base_model": "m0",
        "models": [{"model": n, "parameters": {"weight": 0.5, "density": 0.5}} for n in NAMES[1:]],
    },
    "dare_ties": {
        "merge_method": "dare_ties",
        "base_model": "m0",
        "models": [{"model": n, "parameters": {"weight": 0.5, "density": 0.5}} for n in NAMES[1:]],
    },
}
OURS = """
import time; from untaxed.merging import merge
start = time.perf_counter(); merge({recipe!r}, {out!r}, workers=2); print("took", time.perf_counter() - start)
"""
THEIRS = """
import time; import torch; torch.set_num_threads(2); from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge; from mergekit.options import MergeOptions
options = MergeOptions(write_model_card=False, quiet=True, copy_tokenizer=False, num_threads=2)
start = time.perf_counter()
run_merge(MergeConfiguration.model_validate({recipe!r}), out_path={out!r}, options=options)
print("took", time.perf_counter() - start)
"""


def make(folder: Path) -> None:
    """Three models: one, and two that are a small random step away from it."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    for seed, name in enumerate(NAMES):
        path = folder / name
        path.mkdir()
        tensors = {}
        for number, (key, shape) in enumerate(shapes().items()):
            values = torch.randn(shape, generator=torch.Generator().manual_seed(number)).mul_(0.02)
            if seed:
                step = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + number))
                values.add_(step, alpha=2e-3)
            tensors[key] = values.to(torch.bfloat16)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))


def shapes() -> dict[str, tuple[int, ...]]:
    square, wide, long = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"model.layers.{layer}.self_attn.{name}.weight"] = square
        for name, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", long)):
            found[f"model.layers.{layer}.mlp.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = (HIDDEN,)
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds of a process and of its call, its highest anonymous memory in GB; the disk is synchronised."""
    os.sync()
    start, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(errors.read().decode()[-2000:])
        os.sync()
        whole = time.perf_counter() - start
        errors.seek(0)
        said = [line.split()[1] for line in errors.read().decode().splitlines() if line.startswith("took ")]
    return whole, float(said[-1]) if said else whole, most / 1e9


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def placed(recipe: dict, folder: Path) -> dict:
    """The recipe with absolute paths."""
    text = json.dumps(recipe)
    for name in NAMES:
        text = text.replace(f'"{name}"', json.dumps(str(folder / name)))
    return {**json.loads(text), "dtype": "bfloat16"}


def case(folder: Path, kind: str, code: str, read: int) -> tuple[float, ...]:
    """Seconds of process and call, GB of memory, and GB read and written a second, of one merge."""
    out = folder / "out"
    recipe = placed(RECIPES[kind], folder)
    whole, seconds, memory = measured([sys.executable, "-c", code.format(recipe=recipe, out=str(out))])
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return whole, seconds, memory, (read + written) / seconds / 1e9


def copied(folder: Path) -> tuple[float, ...]:
    """The same of `cp` of one model."""
    whole, seconds, memory = measured(["cp", "-r", str(folder / "m0"), str(folder / "out")])
    size = (folder / "out" / "model.safetensors").stat().st_size
    shutil.rmtree(folder / "out")
    return whole, seconds, memory, 2 * size / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are made and stay; else a temporary one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip-mergekit", action="store_true")
    parser.add_argument("--only", choices=RECIPES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        if not (folder / NAMES[-1] / "config.json").exists():
            folder.mkdir(exist_ok=True, parents=True)
            make(folder)
        size = (folder / "m0" / "model.safetensors").stat().st_size
        print(f"3 models of {size / 2e9:.3f} G parameters, bf16; {len(os.sched_getaffinity(0))} cores\n")
        print("| what | s | s, call | peak anonymous GB | GB/s read and written | runs, s |\n|---|--:|--:|--:|--:|---|")
        row("cp -r and sync", [copied(folder) for _ in range(arguments.runs)])
        for kind in [arguments.only] if arguments.only else RECIPES:
            row(f"untaxed {kind}", [case(folder, kind, OURS, 3 * size) for _ in range(arguments.runs)])
            if not arguments.skip_mergekit:
                row(
                    f"mergekit {kind}",
                    [case(folder, kind, THEIRS, 3 * size) for _ in range(max(1, arguments.runs // 3))],
                )


def row(name: str, runs: list[tuple[float, ...]]) -> None:
    whole, seconds, memory, rate = (statistics.median(column) for column in zip(*runs))
    times = ", ".join(f"{run[0]:.1f}" for run in runs)
    print(f"| {name} | {whole:.1f} | {seconds:.2f} | {memory:.2f} | {rate:.2f} | {times} |", flush=True)


if __name__ == "__main__":
    main()
