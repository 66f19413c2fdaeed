"""Reading a recipe: mergekit's YAML as it is, and one line for what is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from untaxed.errors import SpecError
from untaxed.merging._recipe import Recipe, parse_recipe, read_recipe

FINE = "merge_method: linear\nmodels: [{model: A, parameters: {weight: 1}}]\n"
BASED = "merge_method: {}\nbase_model: B\nmodels: [{}]\n"
MODULES = "merge_method: linear\nmodules: {{a: {}}}\n"
SLICES = "merge_method: linear\nslices: [{{sources: [{}]}}]\n"


def parsed(text: str) -> Recipe:
    return parse_recipe(yaml.safe_load(text), where="r.yaml: ")


def test_a_recipe_names_its_parents_once_and_the_base_first() -> None:
    recipe = parsed(
        "merge_method: ties\nbase_model: C\nmodels: [{model: A}, {model: C}, {model: B}]\nparameters: {weight: 1}"
    )
    assert (recipe.parents, recipe.main, recipe.tokenizer_model) == (("C", "A", "B"), "C", "C")


def test_without_a_base_the_first_model_gives_what_is_not_merged() -> None:
    recipe = parsed(
        "merge_method: linear\nmodels: [{model: B}, {model: A}]\nparameters: {weight: 1}\ntokenizer_source: A"
    )
    assert (recipe.main, recipe.tokenizer_model) == ("B", "A")


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [("", None), ("dtype: bfloat16", "bfloat16"), ("dtype: float32\nout_dtype: float16", "float16")],
)
def test_out_dtype_comes_before_dtype(keys: str, dtype: str | None) -> None:
    assert parsed(FINE + keys).written_dtype == dtype


@pytest.mark.parametrize("whole", [True, False])
def test_a_base_that_a_method_does_not_use_gives_what_is_not_merged(whole: bool) -> None:
    cut = "slices: [{sources: [{model: A, layer_range: [0, 2]}]}]"
    recipe = parsed("merge_method: linear\nbase_model: B\n" + ("models: [{model: A}, {model: B}]" if whole else cut))
    assert (recipe.main, recipe.base_of()) == ("B", None)


def test_one_module_is_the_whole_model() -> None:
    recipe = parsed("merge_method: linear\nmodules: {default: {models: [{model: A}], parameters: {weight: 1}}}")
    assert recipe.parents == ("A",)


def test_an_empty_file_of_parameters_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(FINE + "parameters:\n")
    assert read_recipe(tmp_path / "r.yaml").parameters == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_methd: linear\nmodels: [{model: A}]", "unknown key 'merge_methd'; did you mean 'merge_method'?"),
        ("merge_method: tie\nmodels: [{model: A}]", "merge_method: unknown method 'tie'; did you mean 'ties'?"),
        ("merge_method: breadcrumbs\nmodels: [{model: A}]", "merge_method: unknown method 'breadcrumbs'"),
        ("merge_method: linear", "expected exactly one of `models`, `slices`, `modules`, got none of them"),
        (FINE + "slices: [{sources: [{model: A, layer_range: [0, 2]}]}]", "got `models` and `slices`"),
        ("merge_method: linear\nmodels: []", "models: is empty; give at least 1"),
        ("merge_method: linear\nmodels: [{modle: A}]", "unknown key 'modle' in models.0; did you mean 'model'?"),
        ("merge_method: linear\nmodels: [{model: {path: A}}]", "models.0.model: should be a valid string"),
        ("merge_method: linear\nmodels: [{model: A}, {model: A}]", "models: A stands twice"),
        (FINE + "dtype: bf16", "dtype: unknown name 'bf16'; did you mean 'bfloat16'?"),
        (FINE + "tokenizer_source: union", "tokenizer_source: union is not supported"),
        (FINE + "tokenizer: {}", "tokenizer: union is not supported"),
        (FINE + "tokenizer: {source: A, tokens: {a: 1}}", "tokenizer.tokens: is not supported"),
        (FINE + "tokenizer: {source: A, pad_to_multiple_of: 8}", "tokenizer.pad_to_multiple_of: is not supported"),
        (FINE + "tokenizer: {source: A}\ntokenizer_source: A", "say the same thing"),
        (FINE + "chat_template: chatml", "chat_template: should be a Jinja template, got 'chatml'"),
        (FINE + "embed_slerp: true", "unknown key 'embed_slerp'"),
        (FINE + "parameters: {normalise: 1}", "linear has no parameter 'normalise'; did you mean 'normalize'?"),
        (FINE + "parameters: {normalize: 3}", "parameters.normalize: should be one of true, false, got 3"),
        (FINE + "parameters: {normalize: [true, false]}", "parameters.normalize: has no gradient"),
        (FINE + "parameters: {weight: much}", "parameters.weight: should be a number, got 'much'"),
        (FINE + "parameters: {weight: .nan}", "parameters.weight: should be a number, a list of numbers"),
        (FINE + f"parameters: {{weight: 1{'0' * 400}}}", "parameters.weight: should be a number, a list of numbers"),
        (FINE + "parameters: {weight: []}", "parameters.weight: is an empty list"),
        (FINE + "parameters: {weight: [{filter: a}]}", "parameters.weight: a filter needs a `value`"),
        (FINE + "parameters: {weight: [{filtr: a, value: 1}]}", "unknown key 'filtr'; did you mean 'filter'?"),
        (FINE + "parameters: {weight: [{filter: a, value: 1}, 2]}", "should be written {value: 2}"),
        (FINE.replace("weight", "normalize"), "models.0.parameters.normalize: is one for all models"),
        ("merge_method: ties\nmodels: [{model: A}]", "base_model: is required by ties"),
        (BASED.format("linear", "{model: A}"), "base_model: linear takes no deltas, and mergekit would merge B"),
        (BASED.format("ties", "{model: A, parameters: {density: 1.5}}"), "density: should be in (0, 1], got 1.5"),
        (BASED.format("slerp", "{model: A}, {model: C}"), "slerp merges exactly 1 model besides base_model, got 2"),
        (BASED.format("model_stock", "{model: A}"), "merges at least 2 models besides base_model, got 1"),
        ("merge_method: nuslerp\nmodels: [{model: B}]", "nuslerp merges exactly 2 models, got 1"),
        ("merge_method: passthrough\nmodels: [{model: A}, {model: B}]", "passthrough merges exactly 1 model, got 2"),
        (SLICES.format("{model: A}"), "key `slices.0.sources.0.layer_range` is required"),
        (SLICES.format("{model: A, layer_range: [2, 2]}"), "layer_range: should be [first, stop]"),
        (SLICES.format("{model: A, layer_range: [0, 1, 2]}"), "layer_range: should have at most 2 items"),
        (SLICES.format("{model: A, layer_range: [0, true]}"), "layer_range.1: should be a number, got a truth value"),
        (SLICES.format("{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 3]}"), "equally many layers"),
        (SLICES.format("{model: A, layer_range: [0, 2]}], residual_weight: [1"), "residual_weight: is not supported"),
        (MODULES.format("{}"), "modules.a: expected exactly one of `models`, `slices`, got none of them"),
        (MODULES.format("{models: [{model: A}]}, b: {models: [{model: A}]}"), "parts are not supported, got a, b"),
        (MODULES.format("{models: [{model: A, parameters: {wait: 1}}]}"), "modules.a.models.0.parameters: linear"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_one_line_that_names_the_key(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parsed(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.yaml: ")
    assert "\n" not in str(caught.value)
