"""A recipe and its parents become one rule a tensor."""

from __future__ import annotations

import pytest
import torch
import yaml
from tiny_parents import Parent, named

from untaxed.errors import SpecError
from untaxed.merging._average import AverageRule
from untaxed.merging._dare import DareRule
from untaxed.merging._linear import LinearRule
from untaxed.merging._model_stock import ModelStockRule
from untaxed.merging._output_config import output_config
from untaxed.merging._recipe import Recipe, parse_recipe
from untaxed.merging._recipe_methods import METHODS
from untaxed.merging._resolve import Resolved, Taken, resolve
from untaxed.merging._slerp import SlerpRule
from untaxed.merging._task_arithmetic import TaskArithmeticRule
from untaxed.merging._ties import TiesRule
from untaxed.merging._warp import WarpRule

Q = "self_attn.q_proj.weight"
WHOLE = "merge_method: linear\nmodels: [{}]\n"
EQUAL = WHOLE + "parameters: {{weight: 1}}\n"
CUT = "merge_method: linear\nslices: [{{sources: [{}]}}]\nparameters: {{weight: 1}}\n"


def recipe_of(text: str) -> Recipe:
    return parse_recipe(yaml.safe_load(text))


def resolved(text: str, parents: dict[str, Parent] | None = None) -> dict[str, Resolved]:
    recipe = recipe_of(text)
    return {one.name: one for one in resolve(recipe, parents or {label: named() for label in recipe.parents})}


def weights(made: dict[str, Resolved], inner: str = Q) -> list[float]:
    """The first model's weight, layer by layer."""
    found = [made[name] for name in made if name.endswith(inner)]
    return [one.rule.weights[0] for one in found]  # type: ignore[union-attr]


def test_every_tensor_of_the_parents_is_made_once_and_in_order() -> None:
    made = list(
        resolved(
            "merge_method: linear\nmodels: [{model: A}, {model: B}]\nparameters: {weight: 1}",
            {"A": named(11), "B": named(11)},
        )
    )
    assert sorted(made) == sorted(named(11).kinds)
    assert made.index(f"model.layers.10.{Q}") > made.index(f"model.layers.9.{Q}")


def test_a_gradient_runs_over_the_layers_and_starts_at_0_outside_them() -> None:
    made = resolved(
        "merge_method: linear\nmodels: [{model: A, parameters: {weight: [1, 4]}}]\nparameters: {normalize: false}"
    )
    assert weights(made) == pytest.approx([1, 2, 3, 4])
    outside = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert [made[name].rule.weights[0] for name in outside] == [1, 1, 1]  # type: ignore[union-attr]


def test_the_innermost_scope_that_speaks_of_a_tensor_wins() -> None:
    made = resolved("""
        merge_method: task_arithmetic
        base_model: A
        modules:
          default:
            slices:
            - sources:
              - {model: A, layer_range: [0, 4]}
              - {model: B, layer_range: [0, 4], parameters: {weight: [{filter: q_proj, value: 1}]}}
              parameters: {weight: [{filter: up_proj, value: 2}]}
            parameters: {weight: [{filter: norm, value: 3}], lambda: 5}
        parameters: {weight: 4, lambda: 6}
    """)
    found = [made[f"model.layers.1.{name}"] for name in (Q, "mlp.up_proj.weight", "input_layernorm.weight")]
    found.append(made["lm_head.weight"])
    assert [one.rule.weights[0] for one in found] == [1, 2, 3, 4]  # type: ignore[union-attr]
    assert {one.rule.scale for one in made.values()} == {5}  # type: ignore[union-attr]


def test_slices_renumber_layers_and_each_has_its_own_depth() -> None:
    made = resolved("""
        merge_method: linear
        slices:
        - sources: [{model: A, layer_range: [1, 4], parameters: {weight: [0.5, 1]}}]
        - sources: [{model: B, layer_range: [2, 3], parameters: {weight: [5, 6]}}]
        parameters: {normalize: false}
    """)
    found = [made[f"model.layers.{layer}.{Q}"].models for layer in range(4)]
    there = [("A", 1), ("A", 2), ("A", 3), ("B", 2)]
    assert found == [(Taken(parent, f"model.layers.{layer}.{Q}"),) for parent, layer in there]
    assert f"model.layers.4.{Q}" not in made
    assert weights(made) == pytest.approx([0.5, 0.75, 1, 6])  # a single layer has depth 1
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert [made[name].models[0].parent for name in outside] == ["A", "B", "B"]
    assert [made[name].rule.weights[0] for name in outside] == [0.5, 5, 5]  # type: ignore[union-attr]


def test_filters_see_the_name_in_the_source_for_a_models_number_and_in_the_output_for_a_shared_one() -> None:
    made = resolved("""
        merge_method: task_arithmetic
        base_model: A
        slices:
        - sources:
          - {model: A, layer_range: [0, 2]}
          - {model: B, layer_range: [2, 4], parameters: {weight: [{filter: layers.3, value: 7}, {value: 1}]}}
        parameters: {lambda: [{filter: layers.0, value: 5}, {filter: layers.3, value: 6}, {value: 2}]}
    """)
    assert weights(made) == [1, 7]
    assert [made[f"model.layers.{layer}.{Q}"].rule.scale for layer in (0, 1)] == [5, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("models", ["{model: B}", "{model: B}, {model: A, parameters: {weight: 9}}"])
def test_the_base_stands_apart_whether_listed_or_not(models: str) -> None:
    made = resolved(f"merge_method: task_arithmetic\nbase_model: A\nmodels: [{models}]\nparameters: {{weight: 1}}")
    one = made["model.norm.weight"]
    assert (one.models, one.base) == ((Taken("B", one.name),), Taken("A", one.name))


@pytest.mark.parametrize("models", ["{model: B}", "{model: B}, {model: A}", "{model: A}, {model: B}"])
def test_slerp_starts_at_the_base(models: str) -> None:
    one = resolved(f"merge_method: slerp\nbase_model: A\nmodels: [{models}]\nparameters: {{t: 0.25}}")["lm_head.weight"]
    assert ([taken.parent for taken in one.models], one.base) == (["A", "B"], None)


def test_the_base_alone_is_copied() -> None:
    one = resolved("merge_method: ties\nbase_model: A\nmodels: [{model: A}]")["lm_head.weight"]
    assert (one.rule, one.models) == (None, (Taken("A", "lm_head.weight"),))


def test_passthrough_copies_unless_it_scales() -> None:
    made = resolved(
        "merge_method: passthrough\nmodels: [{model: A, parameters: {scale: [{filter: q_proj, value: 0.5}]}}]"
    )
    assert made["model.norm.weight"].rule is None
    assert weights(made) == [0.5] * 4


def test_a_head_that_one_parent_ties_is_made_where_another_stores_it() -> None:
    text = "merge_method: linear\nmodels: [{model: A}, {model: B}]\nparameters: {weight: 1}"
    parents = {"A": named(head=False), "B": named()}
    recipe = recipe_of(text)
    parents["A"].config["tie_word_embeddings"] = True
    made = resolve(recipe, parents)
    assert [one.models for one in made if one.name == "lm_head.weight"] == [
        (Taken("A", "lm_head.weight"), Taken("B", "lm_head.weight"))
    ]
    assert output_config(recipe, parents, made)["tie_word_embeddings"] is False
    both_tied = {label: named(head=False) for label in "AB"}
    assert "lm_head.weight" not in resolved(text, both_tied)


def test_a_buffer_that_not_every_parent_stores_is_left_out() -> None:
    text = "merge_method: linear\nmodels: [{model: A}, {model: B}]\nparameters: {weight: 1}"
    parents = {label: named() for label in "AB"}
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    parents["A"].kinds[buffer] = torch.zeros(2)
    assert buffer not in resolved(text, parents)
    parents["B"].kinds[buffer] = torch.zeros(2)
    assert buffer in resolved(text, parents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            WHOLE.format("{model: A, parameters: {weight: 1}}, {model: B}"),
            "models: `weight` is required and not said for 'mo",
        ),
        (EQUAL.format("{model: A}, {model: LONG}"), "models: A has 4 layers in 'model.layers', LONG has 6 layers"),
        (CUT.format("{model: A, layer_range: [2, 9]}"), "slices.0.sources.0.layer_range: A has 4 layers, got [2, 9]"),
        (
            CUT.format("{model: BARE, layer_range: [0, 1]}"),
            "slices need models with one stack of layers; BARE has no lay",
        ),
        (
            CUT.format("{model: A, layer_range: [0, 1]}, {model: GPT, layer_range: [0, 1]}"),
            "slices.0.sources.1: GPT keeps its layers in 'h', the first source in 'model.layers'",
        ),
        (
            CUT.replace("linear", "ties\nbase_model: B").format("{model: A, layer_range: [0, 1]}"),
            "slices.0.sources: the base model B is missing; add it",
        ),
        (
            EQUAL.format("{model: A}, {model: MORE}"),
            "models: A has no tensor 'model.layers.3.mlp.bias.weight' to merge with 'model.layers.3.mlp.bias.weight'",
        ),
        (
            WHOLE.format("{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: -1}}"),
            "models: 'model.embed_tokens.weight': weights that are normalized must not sum to 0",
        ),
    ],
)
def test_what_does_not_fit_the_parents_is_one_line(text: str, message: str) -> None:
    recipe = recipe_of(text)
    special = {
        "LONG": named(6),
        "BARE": Parent({"w": torch.zeros(1)}),
        "GPT": Parent({"h.0.ln.weight": torch.zeros(1)}),
    }
    special["MORE"] = named()
    special["MORE"].kinds["model.layers.3.mlp.bias.weight"] = torch.zeros(2)
    with pytest.raises(SpecError) as caught:
        resolve(recipe, {label: special.get(label) or named() for label in recipe.parents})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_and_warnings_begin_with_the_file(caplog: pytest.LogCaptureFixture) -> None:
    cases: list[dict[str, object]] = [{"filter": "slef", "value": 1}]
    raw = {"merge_method": "linear", "models": [{"model": "A"}], "parameters": {"weight": cases}}
    with pytest.raises(SpecError, match=r"^r\.yaml: models: `weight` is required"):
        resolve(parse_recipe(raw, where="r.yaml: "), {"A": named()})
    cases.append({"value": 2})
    resolve(parse_recipe(raw, where="r.yaml: "), {"A": named()})
    assert caplog.messages == ["r.yaml: parameters.weight: no tensor's name contains 'slef'"]


def test_a_filter_that_matches_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    resolved(
        "merge_method: linear\nmodels: [{model: A}]\nparameters: {weight: [{filter: q_proj, value: 2}, {value: 1}]}"
    )
    assert not caplog.messages


def test_slices_may_each_have_a_base_and_the_recipe_none() -> None:
    made = resolved("""
        merge_method: task_arithmetic
        slices:
        - base_model: A
          sources: [{model: A, layer_range: [0, 1]}, {model: B, layer_range: [0, 1]}]
        - base_model: B
          sources: [{model: A, layer_range: [0, 1]}, {model: B, layer_range: [0, 1]}]
        parameters: {weight: 1}
    """)
    found = [made[f"model.layers.{layer}.{Q}"] for layer in (0, 1)]
    assert [(one.models[0].parent, one.base and one.base.parent) for one in found] == [("B", "A"), ("A", "B")]


RULES = {
    "linear": ("weight: 2", LinearRule((2, 2))),
    "slerp": ("t: 0.25", SlerpRule((0.75, 0.25))),
    "task_arithmetic": ("weight: 2, lambda: 3, normalize: 1", TaskArithmeticRule((2,), 3, True)),
    "ties": ("weight: 2, density: 0.5, lambda: 3, seed: 7", TiesRule((2,), (0.5,), True, 3, 7)),
    "dare_linear": ("weight: 2, density: 0.5", DareRule((2,), (0.5,), "sum", "l1")),
    "dare_ties": ("weight: 2, rescale: inverse, seed: 3", DareRule((2,), (1.0,), "sign", "inverse", seed=3)),
    "averaging": ("initial_share: 0.2", AverageRule(0.2)),
    "extrapolation": ("initial_share: -0.3", TaskArithmeticRule((1.3,))),
    "warp": ("initial_share: 0.6", WarpRule((1.0,), 0.6)),
}


@pytest.mark.parametrize("method", RULES)
def test_every_method_makes_its_rule(method: str) -> None:
    says, rule = RULES[method]
    models = "[{model: A}, {model: B}]"
    made = resolved(f"merge_method: {method}\nbase_model: A\nmodels: {models}\nparameters: {{{says}}}")
    assert {one.rule for one in made.values()} == {rule}
    assert (made["lm_head.weight"].base is not None) == rule.needs_base


def test_every_method_has_a_rule_that_is_tested() -> None:
    elsewhere = {"nuslerp", "model_stock", "passthrough"}
    assert set(METHODS) == set(RULES) | elsewhere


def test_rules_for_several_models() -> None:
    models = "[{model: A}, {model: B}, {model: C}]"
    stock = resolved(f"merge_method: model_stock\nbase_model: A\nmodels: {models}")["lm_head.weight"]
    assert (stock.rule, len(stock.models)) == (ModelStockRule(2), 2)
    apart = resolved("merge_method: nuslerp\nmodels: [{model: B}, {model: C}]\nparameters: {weight: 2}")
    assert apart["lm_head.weight"].rule == SlerpRule((2, 2))
    deltas = resolved(f"merge_method: nuslerp\nbase_model: A\nmodels: {models}\nparameters: {{weight: 2}}")
    assert deltas["lm_head.weight"].rule == WarpRule((2, 2), 0)


@pytest.mark.parametrize(
    "says",
    [
        "{rescale: true}\nmerge_method: ties",
        "{nuslerp_row_wise: true}\nmerge_method: nuslerp",
        "{filter_wise: true}\nmerge_method: model_stock",
    ],
)
def test_what_mergekit_can_and_we_cannot_is_refused_by_name(says: str) -> None:
    with pytest.raises(SpecError, match=r"parameters\.\w+: true is not supported"):
        recipe_of(f"base_model: A\nmodels: [{{model: B}}, {{model: C}}]\nparameters: {says}")


def test_the_config_has_the_outputs_layers() -> None:
    cuts = ["{sources: [{model: A, layer_range: [0, 3]}]}", "{sources: [{model: B, layer_range: [1, 3]}]}"]
    recipe = recipe_of(f"merge_method: passthrough\nslices: [{', '.join(cuts)}]")
    parents = {"A": named(), "B": named()}
    parents["A"].config["layer_types"] = ["a0", "a1", "a2", "a3"]
    parents["B"].config["layer_types"] = ["b0", "b1", "b2", "b3"]
    config = output_config(recipe, parents, resolve(recipe, parents))
    assert (config["num_hidden_layers"], config["layer_types"]) == (5, ["a0", "a1", "a2", "b1", "b2"])
    assert parents["A"].config["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json says no number of layers"),
        (
            {"num_hidden_layers": 4, "layer_types": ["x"] * 4},
            "r.yaml: slices.0: B says no 'layer_types' in config.json",
        ),
    ],
)
def test_a_config_that_cannot_be_cut_is_one_line(config: dict[str, object], message: str) -> None:
    text = "merge_method: passthrough\nbase_model: A\nslices: [{sources: [{model: B, layer_range: [0, 3]}]}]"
    recipe = parse_recipe(yaml.safe_load(text), where="r.yaml: ")
    parents = {"A": named(), "B": named()}
    parents["A"].config = config
    with pytest.raises(SpecError, match=message):
        output_config(recipe, parents, resolve(recipe, parents))


def test_the_number_of_layers_may_stand_in_the_text_config() -> None:
    recipe = recipe_of("merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [1, 3]}]}]")
    parents = {"A": named()}
    parents["A"].config = {"text_config": {"num_hidden_layers": 4}, "architectures": ["X"]}
    made = resolve(recipe, parents)
    assert output_config(recipe, parents, made)["text_config"] == {"num_hidden_layers": 2}
