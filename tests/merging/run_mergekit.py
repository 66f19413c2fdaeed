"""Merges every recipe of a directory with mergekit: ``run_mergekit.py DIR`` writes DIR/<recipe>.safetensors.

A process of its own: mergekit is a development tool here, seeds the global generator, and warns.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def merge_all(directory: Path) -> None:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file, save_file

    options = MergeOptions(write_model_card=False, quiet=True, copy_tokenizer=False, random_seed=0)
    for recipe in sorted(directory.glob("*.yaml")):
        with tempfile.TemporaryDirectory() as out:
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text())), out, options=options)
            weights = {}
            for file in sorted(Path(out).glob("*.safetensors")):
                weights.update(load_file(file))
            save_file(weights, recipe.with_suffix(".safetensors"))


if __name__ == "__main__":
    merge_all(Path(sys.argv[1]))
