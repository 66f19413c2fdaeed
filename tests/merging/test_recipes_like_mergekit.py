"""mergekit 0.1.5 and `untaxed` merge the same recipes of small models; where they differ, the test says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_parents import merge_whole, opened, saved, saved_gpt2
from torch import Tensor

from untaxed.merging._recipe import read_recipe

pytestmark = pytest.mark.skipif(
    find_spec("mergekit") is None, reason="mergekit is not installed; pip install 'untaxed[dev]'"
)

SAME = {
    "linear": """
        merge_method: linear
        models: [{model: @A, parameters: {weight: 0.2}}, {model: @B, parameters: {weight: 0.7}}, {model: @BASE}]
        parameters: {weight: 0.3}""",
    "linear_sum": """
        merge_method: linear
        models: [{model: @A, parameters: {weight: 0.2}}, {model: @B, parameters: {weight: -0.7}}]
        parameters: {normalize: false}""",
    "linear_gradient": """
        merge_method: linear
        models: [{model: @A, parameters: {weight: [0, 0.2, 1]}}, {model: @B, parameters: {weight: [1, 0.3]}}]""",
    "linear_filters": """
        merge_method: linear
        models:
        - {model: @A, parameters: {weight: [{filter: self_attn, value: [0.1, 0.9]}, {filter: layers.2.mlp, value: 2}]}}
        - {model: @B, parameters: {weight: {filter: mlp, value: 3}}}
        parameters: {weight: [{filter: lm_head, value: 5}, {filter: "*", value: [1, 2, 4]}]}""",
    "linear_in_a_module": """
        merge_method: linear
        modules: {default: {models: [{model: @A}, {model: @B}], parameters: {weight: [2, 1]}}}
        parameters: {weight: 7, normalize: false}""",
    "slerp": """
        merge_method: slerp
        base_model: @A
        models: [{model: @B}, {model: @A}]
        parameters: {t: [{filter: self_attn, value: [0, 0.5, 0.3, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]}""",
    "slerp_of_slices": """
        merge_method: slerp
        base_model: @A
        slices: [{sources: [{model: @A, layer_range: [0, 4]}, {model: @B, layer_range: [0, 4]}]}]
        parameters: {t: 0.3}""",
    "nuslerp": """
        merge_method: nuslerp
        models: [{model: @A, parameters: {weight: 3}}, {model: @B, parameters: {weight: [1, 5]}}]""",
    "nuslerp_of_deltas": """
        merge_method: nuslerp
        base_model: @BASE
        models: [{model: @A, parameters: {weight: 1}}, {model: @B, parameters: {weight: [1, 5]}}]""",
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: @BASE
        models: [{model: @A, parameters: {weight: 0.4}}, {model: @BASE}, {model: @B, parameters: {weight: [0.1, 0.9]}}]
        parameters: {lambda: [{filter: mlp, value: 1.5}, {value: [1, 2]}]}""",
    "task_arithmetic_normalized": """
        merge_method: task_arithmetic
        base_model: @BASE
        models: [{model: @A, parameters: {weight: 0.4}}, {model: @B, parameters: {weight: 0.9}}]
        parameters: {normalize: true, int8_mask: true}""",
    "ties": """
        merge_method: ties
        base_model: @BASE
        models: [{model: @A, parameters: {weight: 0.4}}, {model: @B, parameters: {weight: [1, 2]}}, {model: @C}]
        parameters: {density: 0.5, weight: 1, lambda: 1.3}""",
    "ties_sum": """
        merge_method: ties
        base_model: @BASE
        models: [{model: @A, parameters: {density: 1}}, {model: @B, parameters: {density: 0.25}}]
        parameters: {weight: 0.6, normalize: false, int8_mask: true}""",
    "dare_linear_that_drops_nothing": """
        merge_method: dare_linear
        base_model: @BASE
        models: [{model: @A}, {model: @B}]
        parameters: {weight: 0.6, density: 1, lambda: 1.2}""",
    "dare_ties_that_drops_nothing": """
        merge_method: dare_ties
        base_model: @BASE
        models: [{model: @A}, {model: @B}]
        parameters: {weight: 0.6, normalize: true}""",
    "model_stock": """
        merge_method: model_stock
        base_model: @BASE
        models: [{model: @A}, {model: @B}, {model: @C}]""",
    "passthrough_of_slices": """
        merge_method: passthrough
        slices:
        - sources: [{model: @A, layer_range: [0, 3]}]
        - sources: [{model: @B, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0}, {value: 3}]}}]""",
    "task_arithmetic_of_slices": """
        merge_method: task_arithmetic
        base_model: @BASE
        slices:
        - sources: [{model: @BASE, layer_range: [1, 3]}, {model: @A, layer_range: [0, 2]}]
          parameters: {weight: [{filter: layers.0, value: 0.3}], lambda: [{filter: layers.0, value: 2}]}
        - base_model: @A
          sources: [{model: @A, layer_range: [3, 4]}, {model: @B, layer_range: [2, 3], parameters: {weight: [2, 8]}}]
        parameters: {weight: [0.5, 1]}""",
    "a_tied_and_an_untied_head": """
        merge_method: linear
        models: [{model: @A}, {model: @TIED}]
        parameters: {weight: [1, 3]}""",
    "tied_heads": """
        merge_method: slerp
        base_model: @TIED
        models: [{model: @TIED_TOO}]
        parameters: {t: [{filter: embed, value: 0.2}, {value: [0.4, 0.9]}]}""",
    "gpt2": """
        merge_method: linear
        models: [{model: @GPT2, parameters: {weight: [{filter: attn, value: [2, 3]}, {value: 5}]}}]
        parameters: {normalize: false}""",
    "gpt2_slices": """
        merge_method: passthrough
        slices:
        - sources: [{model: @GPT2, layer_range: [0, 2]}]
        - sources: [{model: @GPT2, layer_range: [1, 2], parameters: {scale: [2, 3]}}]""",
}  # fmt: skip
DIFFERENT = {
    "ties_uneven": """
        merge_method: ties
        base_model: @BASE
        models: [{model: @A}]
        parameters: {density: 0.3, weight: 1}""",
    "dare": """
        merge_method: dare_linear
        base_model: @BASE
        models: [{model: @A}]
        parameters: {density: 0.4, weight: 1}""",
    "dare_not_rescaled": """
        merge_method: dare_linear
        base_model: @BASE
        models: [{model: @A}]
        parameters: {density: 0.4, weight: 1, rescale: false}""",
    "bfloat16": """
        merge_method: task_arithmetic
        base_model: @HALF_BASE
        models: [{model: @HALF_A}, {model: @HALF_B}]
        parameters: {weight: 0.3}""",
    "opposed_stock": """
        merge_method: model_stock
        base_model: @BASE
        models: [{model: @A}, {model: @OPPOSITE}]""",
    "near_slerp": """
        merge_method: slerp
        base_model: @BASE
        models: [{model: @NEAR}]
        parameters: {t: 0.5}""",
    "negative_weight": """
        merge_method: ties
        base_model: @BASE
        models: [{model: @A, parameters: {weight: 0.4}}, {model: @B, parameters: {weight: -0.7}}]
        parameters: {density: 1}""",
    "tied_signs": """
        merge_method: ties
        base_model: @GRID_BASE
        models: [{model: @GRID_A}, {model: @GRID_B}]
        parameters: {density: 1, weight: 0.3}""",
    "tied_signs_of_dare": """
        merge_method: dare_ties
        base_model: @GRID_BASE
        models: [{model: @GRID_A}, {model: @GRID_B}]
        parameters: {density: 1, weight: 0.3}""",
}  # fmt: skip


def on_a_grid(model: Path, out: Path) -> None:
    """The model with its numbers rounded to 64ths: coarse, as those of bfloat16 are, so that changes cancel exactly."""
    shutil.copytree(model, out)
    weights = {name: (tensor * 64).round() / 64 for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def merged_by_mergekit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the parents, the recipes, and what mergekit made of each."""
    home = tmp_path_factory.mktemp("golden")
    base = saved(home / "BASE", 0)
    middle = saved(home / "MIDDLE", 1, base=base)
    for seed, name in enumerate("ABC", 2):
        saved(home / name, seed, base=middle)  # deltas that have something in common
    saved(home / "OPPOSITE", 1, base=base, scale=-1)
    saved(home / "NEAR", 5, base=base, scale=0.02)
    for name in ("BASE", "A", "B"):
        saved(home / f"HALF_{name}", 0, base=home / name, scale=0, dtype=torch.bfloat16)
        on_a_grid(home / name, home / f"GRID_{name}")
    saved(home / "TIED", 6, tied=True)
    saved(home / "TIED_TOO", 7, tied=True)
    saved_gpt2(home / "GPT2")
    for name, text in (SAME | DIFFERENT).items():
        dtype = "bfloat16" if name == "bfloat16" else "float32"
        (home / f"{name}.yaml").write_text(text.replace("@", f"{home}/") + f"\n        dtype: {dtype}\n")
    script = Path(__file__).with_name("run_mergekit.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, home], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return home


def both(home: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What we make of a recipe, and what mergekit made of it."""
    recipe = read_recipe(home / f"{name}.yaml")
    ours = merge_whole(recipe, {label: opened(label) for label in recipe.parents})
    theirs = opened_file(home / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    return ours, theirs


def opened_file(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("name", SAME)
def test_the_same_tensors(merged_by_mergekit: Path, name: str) -> None:
    ours, theirs = both(merged_by_mergekit, name)
    for tensor, expected in theirs.items():
        torch.testing.assert_close(ours[tensor], expected, rtol=2e-6, atol=2e-7, msg=lambda m, t=tensor: f"{t}: {m}")


def test_ties_keeps_the_nearest_count_where_mergekit_rounds_down(merged_by_mergekit: Path) -> None:
    # density 0.3 of 16, 256, 384 entries: we keep round(4.8), round(76.8), round(115.2), mergekit 4, 76, 115
    ours, theirs = both(merged_by_mergekit, "ties_uneven")
    base = opened(merged_by_mergekit / "BASE").kinds
    for name, expected in theirs.items():
        kept, more = expected != base[name], ours[name] != base[name]
        assert int(kept.sum()) == int(0.3 * kept.numel())
        assert int(more.sum()) == round(0.3 * kept.numel())
        assert bool((more | ~kept).all())  # what mergekit keeps is kept here


@pytest.mark.parametrize(("recipe", "rescaled"), [("dare", True), ("dare_not_rescaled", False)])
def test_dare_has_other_masks_and_the_same_arithmetic(merged_by_mergekit: Path, recipe: str, rescaled: bool) -> None:
    # mergekit draws from the global generator, in the order of execution; here (seed, tensor name) decides
    ours, theirs = both(merged_by_mergekit, recipe)
    base, model = (opened(merged_by_mergekit / name).kinds for name in ("BASE", "A"))
    shares = []
    for side in (ours, theirs):
        kept = total = 0
        for name, made in side.items():
            delta, mask = model[name] - base[name], made != base[name]
            ratio = delta.abs().sum() / (delta * mask).abs().sum() if rescaled else 1
            torch.testing.assert_close(made - base[name], ratio * delta * mask, rtol=1e-4, atol=1e-6)
            kept, total = kept + int(mask.sum()), total + mask.numel()
        shares.append(kept / total)
    assert shares == pytest.approx([0.4, 0.4], abs=0.02)


def test_bfloat16_is_stored_and_not_calculated_in(merged_by_mergekit: Path) -> None:
    # mergekit rounds after every operation; we round once, so ours is nearest to the exact result everywhere
    ours, theirs = both(merged_by_mergekit, "bfloat16")
    base, one, two = (opened(merged_by_mergekit / f"HALF_{name}").kinds for name in ("BASE", "A", "B"))
    for name, made in ours.items():
        start = base[name].double()
        exact = start + 0.3 * (one[name].double() - start) + 0.3 * (two[name].double() - start)
        assert made.dtype == torch.bfloat16
        assert bool(((made.double() - exact).abs() <= (theirs[name].double() - exact).abs() + 1e-12).all())
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_models_that_disagree_leave_the_base_where_mergekits_stock_goes_past_it(merged_by_mergekit: Path) -> None:
    # A and OPPOSITE have deltas at more than 90 degrees: t = 2 cos / (1 + cos) < 0; we stop at t = 0
    ours, theirs = both(merged_by_mergekit, "opposed_stock")
    base = opened(merged_by_mergekit / "BASE").kinds
    whole = "model.embed_tokens.weight"
    assert torch.equal(ours[whole], base[whole])
    assert not torch.allclose(theirs[whole], base[whole])


def test_slerp_of_near_parallel_tensors_stays_on_the_arc_where_mergekit_takes_the_line(
    merged_by_mergekit: Path,
) -> None:
    # mergekit goes over to the line above a cosine of 0.9995: the arc's middle is longer by 1/cos(angle/2) - 1
    ours, theirs = both(merged_by_mergekit, "near_slerp")
    name = "model.embed_tokens.weight"
    start, end = (opened(merged_by_mergekit / label).kinds[name] for label in ("BASE", "NEAR"))
    torch.testing.assert_close(theirs[name], (start + end) / 2, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours[name], theirs[name], rtol=2e-4, atol=0)
    assert float(ours[name].norm()) > float(theirs[name].norm())


def test_ties_divides_by_the_weights_magnitudes_where_mergekit_divides_by_the_weights(merged_by_mergekit: Path) -> None:
    # with weights 0.4 and -0.7 mergekit divides agreeing terms by -0.3, which turns and enlarges them; we by 1.1
    ours, theirs = both(merged_by_mergekit, "negative_weight")
    base, one, two = (opened(merged_by_mergekit / name).kinds for name in ("BASE", "A", "B"))
    for name, start in base.items():
        terms = torch.stack([0.4 * (one[name] - start), -0.7 * (two[name] - start)])
        agree = terms.sign() == terms.sum(0).sign()
        for made, weights in ((theirs, (0.4, -0.7)), (ours, (0.4, 0.7))):
            divisor = sum(weight * mask for weight, mask in zip(weights, agree))
            expected = start + (terms * agree).sum(0) / divisor
            torch.testing.assert_close(made[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recipe", "share"), [("tied_signs", 1.0), ("tied_signs_of_dare", 0.3)])
def test_an_exact_tie_of_signs_leaves_the_base_where_mergekit_takes_what_grew(
    merged_by_mergekit: Path, recipe: str, share: float
) -> None:
    # 0.3 d - 0.3 d = 0 has no majority; mergekit counts 0 as positive, so that -models merged are not -(models merged)
    ours, theirs = both(merged_by_mergekit, recipe)
    base, one, two = (opened(merged_by_mergekit / f"GRID_{name}").kinds for name in ("BASE", "A", "B"))
    ties = 0
    for name, start in base.items():
        first, second = one[name] - start, two[name] - start
        tie = (first == -second) & (first != 0)
        ties += int(tie.sum())
        assert torch.equal(ours[name][tie], start[tie])
        torch.testing.assert_close(theirs[name][tie], (start + share * first.abs())[tie], rtol=2e-6, atol=2e-7)
        torch.testing.assert_close(ours[name][~tie], theirs[name][~tie], rtol=2e-6, atol=2e-7)
    assert ties > 100
