"""Laws that hold for every method, from one table of canonical settings."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from untaxed import methods
from untaxed.errors import SpecError, Unsupported
from untaxed.merging import model_stock, warp
from untaxed.method import Method
from untaxed.sites import Context, Host, Shown, Weights
from untaxed.weights import same, trainable

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "early_stopping": [{}],
    "kl": [{"beta": 0.1}],
    "averaging": [{"initial_share": 0.0}, {"initial_share": 0.3}, {"initial_share": 1.0}],
    "hma": [{"initial_share": 0.2}, {"initial_share": 0.4, "blocks": {"all": "matrix"}, "policies": "as_released"}],
    "hma_search": [{}, {"goal": "most_reward", "tax_at_most": 0.05, "initial_share": 0.2, "evaluations": 9}],
    "part_averaging": [
        {"block": "all", "blocks": {"all": "matrix"}},
        {"block": "output", "blocks": {"first": "matrix", "last": "scalar"}, "initial_share": 0.3},
    ],
    "slerp": [{"initial_share": 0.0}, {"initial_share": 0.3}, {"initial_share": 1.0}],
    "ties": [{"density": 0.2}, {"density": 1.0, "scale": 0.5}],
    "dare": [{"density": 0.2}, {"density": 0.5, "rescale": "l1", "scale": 0.8, "seed": 3}],
    "extrapolation": [{"initial_share": -0.3}, {"initial_share": 0.0}],
    "model_stock": [{"members": 2}, {"members": 4}],
    "warp": [{"members": 2}, {"members": 3, "initial_share": 0.2}],
    "elastic_reset": [{"decay": 0.9, "reset_every": 4}, {"decay": 0.5, "reset_every": 4, "update_every": 2}],
    "ema": [{"decay": 0.9}, {"half_life": 4.0, "update_every": 2, "bias_correction": True}],
    "reset_to_initial": [{"reset_every": 4}],
    "reset_to_average": [{"decay": 0.9, "reset_every": 4}],
    "drift_triggered_reset": [{"forward_kl": 0.5, "decay": 0.9}],
    "ondare": [{"density": 0.05, "merge_weight": 1e-4}, {"density": 1.0, "merge_weight": 0.0, "merge_every": 3}],
    "onties": [{"density": 0.2, "merge_weight": 1e-4}],
    "online": [{"density": 0.2, "merge_weight": 1e-2, "pull": "anchor"}],
    "update_dropout": [{"density": 0.05}],
    "mofo": [{"density": 0.15}],
    "childtuning": [{"density": 0.3}],
    "ogpsa": [{}, {"refresh_every": 30, "scope": "model", "when": "conflict", "loss": "preference", "site": "update"}],
    "nspo": [{}, {"every": 1, "threshold": "energy", "value": 0.9, "layers": ["*.up_proj"], "site": "update"}],
    "sync_reference": [{"share": 0.6, "sync_every": 3}, {"share": 1.0, "sync_every": 1}],
    "warp_anchor": [{}, {"mu": 0.1}],
    "lora": [{}, {"rank": 2, "alpha": 4.0, "targets": ("q_proj", "v_proj"), "learning_rate": 1e-3}],
    "l1": [{"strength": 0.1}],
    "l2": [{"strength": 100.0}],
    "kl_loss": [{}, {"coefficient": 0.1, "direction": "reverse", "batch_size": 4, "seed": 3}],
    "distill": [{}, {"temperature": 4.0}],
    "rpo": [{}, {"eta": 0.005}],
    "replay": [{}, {"coefficient": 0.5, "batch_size": 2}, {"share": 0.2}],
    "bema": [{"update_every": 2}, {"update_every": 3, "into": "reference", "schedule": "trl", "start_after": 2}],
    "best_of_n": [{"n": 1}, {"n": 8, "samples": 16}],
    "logit_mixing": [{"initial_share": 0.0}, {"initial_share": 0.3}, {"initial_share": 1.0}],
}
CASES = [methods.build(name, settings) for name, each in SETTINGS.items() for settings in each]
AFTER = [method for method in CASES if "after" in method.acts and type(method).make is Method.make]
BETWEEN = [method for method in CASES if "between" in method.acts]


def label(method: Method) -> str:
    return f"{method.name}-{'-'.join(map(str, method.settings().values()))}"


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every form a tensor can have: matrix, scalar, one element, empty, integer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (5, 3), "scalar": (), "one": (1,), "empty": (0, 4)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**made, "integer": torch.tensor([seed])}


def made(method: Method, initial: Weights, aligned: Weights) -> dict[str, torch.Tensor]:
    """The variant, of as many equal trainings as the method takes."""
    if method.trainings == 1:
        return method.after(initial, aligned)
    return method.merge(initial, [aligned] * method.trainings)


def test_the_table_of_settings_has_every_method() -> None:
    assert set(SETTINGS) == set(methods.METHODS)


@pytest.mark.parametrize("method", CASES, ids=label)
def test_a_row_says_what_it_is(method: Method) -> None:
    assert method.title
    assert method.source
    assert method.summary[-1] != "."
    assert type(method).__doc__
    assert methods.build(method.name, method.settings()) == method
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("method", AFTER, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merging_a_model_with_itself_is_that_model(method: Method, dtype: torch.dtype) -> None:
    given = weights(1, dtype)
    assert same(made(method, given, given), given)


@pytest.mark.parametrize("method", AFTER, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_not_written_and_dtypes_are_kept(method: Method, dtype: torch.dtype) -> None:
    initial, aligned = weights(1, torch.float32), weights(2, dtype)
    copies = [{name: tensor.clone() for name, tensor in each.items()} for each in (initial, aligned)]
    merged = made(method, initial, aligned)
    for tensor in merged.values():
        tensor.zero_()
    assert same(initial, copies[0])
    assert same(aligned, copies[1])
    assert {name: tensor.dtype for name, tensor in merged.items()} == {name: t.dtype for name, t in aligned.items()}
    assert list(merged) == list(aligned)


def test_the_ends_of_a_share() -> None:
    initial, aligned = weights(1), weights(2)
    for name in ("averaging", "slerp", "extrapolation"):
        assert same(methods.build(name, {"initial_share": 0}).after(initial, aligned), aligned)
    assert same(methods.build("averaging", {"initial_share": 1}).after(initial, aligned), initial)
    for name, setting in (("slerp", "initial_share"), ("ties", "density"), ("dare", "density")):
        end = methods.build(name, {setting: 1}).after(initial, aligned)
        assert same(end, initial if name == "slerp" else aligned)


def test_a_merge_goes_by_the_names_of_tensors() -> None:
    initial, aligned = (dict.fromkeys(("a", "b"), value[:]) for value in (torch.zeros(999), torch.ones(999)))
    made = methods.build("dare", {"density": 0.5}).after(initial, aligned)
    assert not torch.equal(made["a"], made["b"])
    assert same({"a": methods.build("dare", {"density": 0.5}).after(initial, aligned)["a"]}, {"a": made["a"]})


@pytest.mark.parametrize("method", AFTER, ids=label)
def test_weights_that_do_not_fit_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="is missing from aligned"):
        made(method, weights(1), {"matrix": torch.zeros(5, 3)})


@pytest.mark.parametrize("method", BETWEEN, ids=label)
def test_a_due_step_says_so_and_two_seeded_runs_agree(method: Method) -> None:
    finals = []
    for _ in range(2):
        torch.manual_seed(0)
        model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
        host = Host(reference=lambda: trainable(reference), drift=lambda: {"step": 3, "forward_kl": 0.7})  # noqa: B023
        live = method.between(model, host)
        assert isinstance(live, Shown) == method.ships_other
        for _ in range(9):
            with torch.no_grad():
                model.weight.add_(torch.randn_like(model.weight))
            due = live.due()
            assert live.step() == (due and method.resets)
        finals.append(model.weight.clone())
    assert torch.equal(*finals)


@pytest.mark.parametrize("method", [case for case in CASES if case not in AFTER + BETWEEN], ids=label)
def test_a_method_offers_no_more_than_it_says(method: Method) -> None:
    with pytest.raises(NotImplementedError, match="does not act between steps"):
        method.between(nn.Linear(1, 1))
    with pytest.raises(NotImplementedError, match="does not act after training"):
        method.after({}, {})


def test_which_methods_train() -> None:
    assert {method.name for method in CASES if not method.trains} == {
        *("plain", "early_stopping", "averaging", "slerp", "ties", "dare", "extrapolation", "model_stock", "warp"),
        *("hma", "hma_search", "part_averaging", "best_of_n", "logit_mixing"),
    }


def test_which_methods_merge_several_trainings() -> None:
    assert {method.name: method.trainings for method in CASES if method.trainings > 1} == {"model_stock": 4, "warp": 3}
    initial, first, second = weights(1), weights(2), weights(3)
    stock = methods.build("model_stock", {"members": 2}).merge(initial, [first, second])
    warped = methods.build("warp", {"members": 2, "initial_share": 0.2}).merge(initial, [first, second])
    matrices = [one["matrix"] for one in (first, second)]
    assert torch.equal(stock["matrix"], model_stock(matrices, initial["matrix"]))
    assert torch.equal(warped["matrix"], warp(matrices, initial["matrix"], initial_share=0.2))
    whole = methods.build("warp", {"members": 2, "initial_share": 1}).merge(initial, [first, second])
    assert same(whole, initial)
    with pytest.raises(ValueError, match="rule is for 2 models, got 3"):
        methods.build("model_stock", {"members": 2}).merge(initial, [first, second, first])
    with pytest.raises(ValueError, match="is missing from aligned 1"):
        methods.build("warp", {"members": 2}).merge(initial, [first, {"matrix": first["matrix"]}])
    with pytest.raises(NotImplementedError, match="model_stock does not act after training"):
        methods.build("model_stock", {"members": 2}).after(initial, first)
    with pytest.raises(NotImplementedError, match="averaging does not merge several trainings"):
        methods.build("averaging", {"initial_share": 0.2}).merge(initial, [first, second])


def test_which_methods_cost_more_decoding_and_are_no_remedies() -> None:
    costs = {label(method): method.decoding_cost for method in CASES if method.decoding_cost > 1}
    assert costs == {"best_of_n-8-16": 8, "logit_mixing-0.3": 2}
    assert {method.name for method in CASES if method.yardstick} == {"best_of_n", "logit_mixing"}
    assert {method.name for method in CASES if method.of_initial} == {"best_of_n"}


def test_kl_needs_an_algorithm_with_a_beta() -> None:
    kl = methods.build("kl", {"beta": 0.2})
    assert kl.arguments() == {"beta": 0.2}
    for name in ("dpo", "ipo", "kto", "rloo", "grpo"):
        kl.check(Context(name, 10))
    with pytest.raises(Unsupported, match=r"kl needs an algorithm with a beta .* got sft"):
        kl.check(Context("sft", 10))
    with pytest.raises(Unsupported, match="got no algorithm"):
        kl.check(Context(None, None))
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"beta must be (above 0|finite)"):
            methods.build("kl", {"beta": beta})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("elastic_rest", {}, "unknown method 'elastic_rest'; did you mean 'elastic_reset'? known: averaging"),
        ("averaging", {"share": 0.1}, "method averaging has no setting 'share'; did you mean 'initial_share'?"),
        ("averaging", {}, "method averaging: the setting `initial_share` is required"),
        ("averaging", {"initial_share": 2}, r"method averaging: initial_share must be in \[0, 1\], got 2"),
        ("averaging", {"initial_share": "a"}, "method averaging.initial_share: should be a valid number"),
        ("slerp", {"initial_share": 1.5}, r"method slerp: initial_share must be in \[0, 1\], got 1.5"),
        (
            "extrapolation",
            {"initial_share": 0.2},
            "extrapolation must be at most 0, got 0.2; above 0: averaging",
        ),
        ("model_stock", {}, "method model_stock: the setting `members` is required"),
        ("model_stock", {"members": 1}, "method model_stock: members must be at least 2, got 1: one training leaves"),
        ("warp", {"members": 2.5}, "method warp.members"),
        ("warp", {"members": 2, "initial_share": -1}, r"method warp: initial_share must be in \[0, 1\], got -1"),
        ("ties", {"density": 0}, r"method ties: density must be in \(0, 1\], got 0"),
        ("dare", {"density": 0.5, "rescale": "l2"}, "method dare.rescale"),
        ("best_of_n", {"n": 0}, "method best_of_n: n must be at least 1, got 0"),
        ("best_of_n", {"n": 65}, "method best_of_n: n must be at most samples, got the best of 65 among 64"),
        ("logit_mixing", {"initial_share": -0.5}, r"method logit_mixing: initial_share must be in \[0, 1\], got -0.5"),
        ("plain", {"beta": 1}, "method plain has no setting 'beta'; it takes no settings"),
    ],
)
def test_wrong_names_and_settings_are_spec_errors(name: str, settings: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("?", r"\?")):
        methods.build(name, settings)


@dataclasses.dataclass(frozen=True)
class Outside(Method):
    """A method of another package."""

    name: ClassVar[str] = "outside"
    title: ClassVar[str] = "Outside"
    source: ClassVar[str] = "nowhere"
    summary: ClassVar[str] = "for this test"


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    entries = EntryPoints(EntryPoint(name, value, methods.GROUP) for name, value in points.items())
    monkeypatch.setattr(methods, "entry_points", lambda group: entries)


def test_other_packages_add_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, outside=f"{__name__}:Outside")
    assert methods.get("outside") is Outside
    assert methods.rows()["outside"] is Outside
    with pytest.raises(SpecError, match="did you mean 'outside'"):
        methods.get("outsid")


def test_a_broken_row_is_named_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, broken="no_such_package:Row", wrong=f"{__name__}:label", plain=f"{__name__}:Outside")
    with pytest.raises(SpecError, match="method 'broken' cannot be loaded from no_such_package:Row"):
        methods.get("broken")
    with pytest.raises(SpecError, match="is not a Method class of that name"):
        methods.get("wrong")
    assert methods.get("plain") is methods.Plain
    assert methods.rows() == methods.METHODS
    assert "the name is taken" in caplog.text
    assert "no_such_package" in caplog.text
