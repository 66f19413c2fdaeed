"""The drift meter without a trainer: its numbers, its guards, what it refuses."""

from __future__ import annotations

import itertools
import logging
import math
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from untaxed.callbacks import DriftMeter, DriftMeterState, ElasticReset, ElasticResetState, Guard
from untaxed.callbacks._initial_samples import as_text, distinct
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import DataError, RunFailed, StoreError, Unsupported
from untaxed.sites import Host
from untaxed.weights import same, trainable


class TwoTokens(nn.Module):
    """Says one of two tokens, whatever was said before, with probabilities that are known."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([first, 1 - first]).log())
        self.config = types.SimpleNamespace(get_text_config=lambda: types.SimpleNamespace(vocab_size=2, model_type=""))

    def get_output_embeddings(self) -> nn.Module:
        return nn.Identity()

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        cache = types.SimpleNamespace(batch_select_indices=lambda rows: None)
        return types.SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 2), past_key_values=cache)


class Letters:
    """A tokenizer of two letters, with no end of text."""

    bos_token = eos_token_id = None
    bos_token_id = 0

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        return {"input_ids": [] if isinstance(texts, str) else [["ab".index(letter) for letter in t] for t in texts]}

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return ["".join("ab"[token] for token in row) for row in rows]


def two_tokens(policy: TwoTokens, initial: TwoTokens | None = None, **settings: Any) -> DriftMeterState:
    settings = {"every": 1, "max_new_tokens": 8, "samples": 4, **settings}
    return DriftMeterState(policy, initial, Letters(), ["a", "ba"], **settings)


def put(model: TwoTokens, first: float) -> None:
    with torch.no_grad():
        model.logits.copy_(torch.tensor([first, 1 - first]).log())


def test_the_numbers_of_a_model_that_is_known() -> None:
    policy = TwoTokens(0.5)
    meter = two_tokens(policy)
    put(policy, 0.25)
    values = meter.measure()
    assert values["forward_kl"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-7)
    assert values["entropy"] == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75), abs=1e-7)
    assert values["length"] == 8  # no end of text: every sample goes on to the last token
    assert values["distinct_1"] == 2 / (8 * 8)  # both tokens occur among 8 samples of 8
    assert 0 < values["distinct_2"] <= 4 / (8 * 7)


def test_the_other_direction_is_another_number() -> None:
    policy = TwoTokens(0.25)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert two_tokens(TwoTokens(0.5), policy).measure()["forward_kl"] == pytest.approx(expected, abs=1e-7)


def test_a_second_set_of_prompts_is_read_as_the_first_one_is() -> None:
    policy = TwoTokens(0.5)
    meter = two_tokens(policy, general_prompts=["ab", "b", "aab"])
    put(policy, 0.25)
    values = meter.measure()
    one, other = ({name.removeprefix(begins): value for name, value in values.items() if name.startswith(begins)}
                  for begins in ("", "general_"))  # fmt: skip
    assert other.keys() == {"forward_kl", "entropy", "length", "distinct_1", "distinct_2", "tokens"} <= one.keys()
    assert other["forward_kl"] == pytest.approx(one["forward_kl"])  # the model says the same after whatever
    assert meter.tokens == {"tokens": 2 * 4 * 8, "general_tokens": 3 * 4 * 8}
    assert (one["tokens"], other["tokens"]) == (64, 96)
    assert other["distinct_1"] == 2 / 96


def test_one_token_for_ever_is_repetition() -> None:
    policy = TwoTokens(0.5)
    meter = two_tokens(policy)
    before = meter.measure()
    put(policy, 1 - 1e-6)
    after = meter.measure()
    assert after["distinct_1"] == 1 / 64 < before["distinct_1"]
    assert after["distinct_2"] == 1 / 56 < before["distinct_2"]
    assert after["entropy"] < 1e-4


def test_distinct_of_rows_that_are_too_short() -> None:
    assert distinct([[1], []], 2) is None
    assert distinct([[1], []], 1) == 1
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == 0.5


PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]


@pytest.fixture
def made(tiny_initial: Path) -> Callable[..., tuple[Any, DriftMeterState]]:
    """A policy at its initial weights and its meter."""

    def make(initial: Any = None, **settings: Any) -> tuple[Any, DriftMeterState]:
        model = load_model(tiny_initial)
        settings = {"every": 2, "max_new_tokens": 6, "samples": 2, **settings}
        return model, DriftMeterState(model, initial, load_tokenizer(tiny_initial), PROMPTS, **settings)

    return make


def move(model: nn.Module, seed: int = 0, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)


def test_zero_at_the_start_and_not_afterwards(made: Callable[..., Any]) -> None:
    model, meter = made()
    assert meter.measure()["forward_kl"] == 0
    move(model)
    assert meter.measure()["forward_kl"] > 1e-3


@pytest.mark.parametrize("kind", ["path", "module"])
def test_the_initial_model_may_be_another(made: Callable[..., Any], tiny_initial: Path, kind: str) -> None:
    model, meter = made()
    move(model)
    expected = meter.measure()
    given = tiny_initial if kind == "path" else load_model(tiny_initial).train()
    other = DriftMeterState(
        model, given, load_tokenizer(tiny_initial), PROMPTS, every=2, max_new_tokens=6, samples=2
    )  # fmt: skip
    assert other.measure() == expected
    assert kind == "path" or given.training


def test_step_measures_every_so_often_and_leaves_no_trace(made: Callable[..., Any]) -> None:
    model, meter = made()
    model.train()
    random, weights = torch.get_rng_state(), {name: value.clone() for name, value in trainable(model).items()}
    assert [meter.step() for _ in range(5)] == [False, True, False, True, False]
    assert meter.reading["step"] == 4
    assert not meter.due()
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert same(weights, trainable(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_saved_state_keeps_the_initial_model(made: Callable[..., Any]) -> None:
    model, meter = made(guards=[Guard({"forward_kl": 1e-9})])
    move(model)
    meter.step(), meter.step()
    saved = meter.state_dict()
    resumed = DriftMeterState(model, None, meter._tokenizer, PROMPTS, every=2, max_new_tokens=6, samples=2,
                              guards=[Guard({"forward_kl": 1e-9})])  # fmt: skip
    assert resumed.measure()["forward_kl"] == 0  # it takes the drifted policy for the initial one
    resumed.load_state_dict(saved)  # and is told better
    assert resumed.reading == meter.reading
    assert resumed.state_dict()["crossed"] == [True]
    move(model, 1)
    assert resumed.measure() == meter.measure()


def test_both_sets_are_in_the_state(made: Callable[..., Any]) -> None:
    model, meter = made(general_prompts=["w7", "w8 w9"])
    saved = meter.state_dict()
    move(model)
    expected = meter.measure()
    resumed = DriftMeterState(
        model, None, meter._tokenizer, PROMPTS, general_prompts=["w7", "w8 w9"], max_new_tokens=6, samples=2
    )
    assert resumed.measure()["general_forward_kl"] == 0
    resumed.load_state_dict(saved)
    assert resumed.measure() == expected
    assert expected["general_forward_kl"] > 0


def test_a_state_with_other_prompts_is_refused_by_what_they_are(made: Callable[..., Any], tiny_initial: Path) -> None:
    model, meter = made()
    other = ["w1 w2", "w3", "w4 w5 w7"]  # as many, as long
    both = DriftMeterState(
        model, None, meter._tokenizer, PROMPTS, general_prompts=other, every=2, max_new_tokens=6, samples=2
    )  # fmt: skip
    for prompts, general, message in [
        (other, None, "holds samples after other prompts, as many; give a state that was saved with these prompts"),
        (PROMPTS, other, "has no general prompts, and it has them here; give general_prompts alike"),
    ]:
        resumed = DriftMeterState(
            model, None, meter._tokenizer, prompts, general_prompts=general, max_new_tokens=6, samples=2
        )
        with pytest.raises(StoreError, match=re.escape(message)):
            resumed.load_state_dict(meter.state_dict())
    with pytest.raises(StoreError, match="has general prompts, and it has none here"):
        meter.load_state_dict(both.state_dict())
    second = DriftMeterState(model, None, meter._tokenizer, PROMPTS, general_prompts=PROMPTS[::-1], max_new_tokens=6,
                             samples=2)  # fmt: skip
    before = {name: tensor.clone() for name, tensor in second.state_dict()["samples"].items()}
    move(model)
    with pytest.raises(StoreError, match="holds samples after other prompts"):
        second.load_state_dict(both.state_dict())
    assert same(before, second.state_dict()["samples"])  # the first set fits, and is not taken up without the second


def test_a_state_of_another_meter_is_refused(made: Callable[..., Any]) -> None:
    _, meter = made()
    good = meter.state_dict()
    for state, message in [
        ({}, "'samples' is missing; 'steps' is missing"),
        ({**good, "crossed": [True]}, "other guards"),
        ({**good, "crossed": ["no"]}, "'crossed' must be a list of truth values, got ['no']"),
        ({**good, "reading": [1]}, "'reading' must be a list of names and values, got [1]"),
        ({**good, "reading": [["forward_kl", None]]}, "'reading' must be a list of names and values"),
        ({**good, "samples": {}}, "does not hold 6 samples of at most 6 tokens"),
        ({**good, "samples": {**good["samples"], "logits": torch.ones(1, 2)}}, "does not hold 6 samples"),
    ]:
        with pytest.raises(StoreError, match=re.escape(message)):
            meter.load_state_dict(state)
    assert meter.measure()["forward_kl"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "a list of prompts, texts or conversations; there are none"),
        ({"prompts": "once"}, "a list of prompts, texts or conversations; got str"),
        ({"prompts": ["once", 3]}, "prompt 1 is neither a text nor a conversation: 3"),
        ({"every": 0}, "every must be a whole number, at least 1, got 0"),
        ({"every": True}, "every must be a whole number"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"temperature": -1}, "temperature must be a number, at least 0, got -1"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"guards": Guard({"forward_kl": 0.5})}, "guards are a list of Guard"),
        ({"guards": None}, "guards are a list of Guard"),
        ({"general_prompts": []}, "a list of general prompts, texts or conversations; there are none"),
        ({"general_prompts": ["once", 3]}, "general prompt 1 is neither a text nor a conversation: 3"),
        ({"guards": [Guard({"general_forward_kl": 1.0})]}, "no measure 'general_forward_kl': give it general_prompts"),
        ({"guards": [Guard({"tax": 1.0})]}, "this meter has no measure 'tax'; known: distinct_1"),
        ({"non_finite": "halt"}, "non_finite cannot be 'halt'; known: raise, stop"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DriftMeter(**{"prompts": PROMPTS, **settings})
    with pytest.raises(ValueError, match=re.escape(message)):
        two_tokens(TwoTokens(0.5), **settings) if "prompts" not in settings else DriftMeter(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"when": {"general_entropy": 0.5}}, 'general_entropy may leave its range on both sides; write {"below": 0.5}'),
        ({"when": {"forward_lk": 0.5}}, "no measure 'forward_lk'; did you mean 'forward_kl'? known: distinct_1"),
        ({"when": {}}, "limits are given by measure"),
        ({"when": {"forward_kl": {}}}, "forward_kl has no limit; write"),
        ({"when": {"entropy": 0.5}}, 'both sides; write {"below": 0.5} or {"above": 0.5}'),
        ({"when": {"entropy": {"under": 0.5}}}, "entropy has no side 'under'"),
        ({"when": {"entropy": {"below": 0}}}, "the limit below of entropy must be a number above 0, got 0"),
        ({"when": {"forward_kl": float("nan")}}, "must be a number above 0, got nan"),
        ({"do": "rest"}, "a guard cannot 'rest'; did you mean 'reset'? known: lower_lr, reset, stop, warn"),
        ({"do": "lower_lr", "factor": 1.0}, "factor must be a number between 0 and 1, got 1.0"),
    ],
)
def test_guards_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Guard(**{"when": {"forward_kl": 0.5}, **settings})
    with pytest.raises(ValueError, match="guards are a list of Guard"):
        DriftMeter(PROMPTS, guards=[{"forward_kl": 0.5}])


def test_what_cannot_be_measured_is_refused_with_the_way_out(
    made: Callable[..., Any], tiny_initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_initial)
    with pytest.raises(Unsupported, match="reads the logits of a causal language model, got Linear"):
        DriftMeterState(nn.Linear(1, 1), None, tokenizer, PROMPTS)
    classifier = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_initial))
    with pytest.raises(Unsupported, match="logits of a causal language model, got LlamaForSequenceClassification"):
        DriftMeterState(classifier, None, tokenizer, PROMPTS)
    with pytest.raises(DataError, match="a list of prompts, texts or conversations; got NoneType"):
        DriftMeterState(load_model(tiny_initial), None, tokenizer, None)  # only a trainer has held-out ones
    with pytest.raises(Unsupported, match="needs a tokenizer"):
        DriftMeterState(load_model(tiny_initial), None, None, PROMPTS)
    with pytest.raises(DataError, match="prompt 0 has 2 tokens, and 63 new ones do not fit into the model's context"):
        made(max_new_tokens=63)
    with pytest.raises(Unsupported, match="initial has a vocabulary of 2, the policy of 32"):
        made(TwoTokens(0.5))
    with pytest.raises(Unsupported, match=r"is to 'stop', which the loop around does not offer: give Host\(stop=…\)"):
        made(guards=[Guard({"forward_kl": 1}, do="stop")])
    with pytest.raises(Unsupported, match=r"non_finite is 'stop', .* give Host\(stop=…\)"):
        made(non_finite="stop")
    monkeypatch.setattr("untaxed.callbacks._initial_samples.MOST_BYTES", 1000)
    with pytest.raises(Unsupported, match=r"logits at 36 tokens of a vocabulary of 32: .*; give fewer prompts"):
        made()
    monkeypatch.setattr("untaxed.callbacks._initial_samples.MOST_BYTES", 36 * 32 * 4)
    made()
    with pytest.raises(Unsupported, match=r"logits at 48 tokens of a vocabulary of 32: .*; give fewer prompts"):
        made(general_prompts=["w7"])


def test_conversations_become_texts(tiny_initial: Path) -> None:
    tokenizer = load_tokenizer(tiny_initial)
    talk = [{"role": "user", "content": "w1 w2"}]
    with pytest.raises(DataError, match="the tokenizer has no chat template; give prompts as texts"):
        as_text(tokenizer, talk)
    tokenizer.chat_template = "<bos>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert as_text(tokenizer, talk) == "<bos>w1 w2"
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert as_text(tokenizer, talk) == "w1 w2"  # else it would stand there twice
    meter = DriftMeterState(load_model(tiny_initial), None, tokenizer, [talk], max_new_tokens=2)
    assert meter._sets[""]._ids == ((1, 5, 6),)


# --- Guards ---------------------------------------------------------------------------------------------------------


def guarded(values: list[float], guard: Guard, **host: Any) -> list[dict[str, float]]:
    """What a guard on `forward_kl` does along given readings."""
    from untaxed.callbacks._guards import Guards

    live = Guards([guard], Host(**host))
    return [live.look({"step": step, "forward_kl": value}) for step, value in enumerate(values)]


def test_a_warning_once_a_crossing_with_step_and_value(caplog: pytest.LogCaptureFixture) -> None:
    # 0.47 is below the limit, but not by a tenth of it; 0.44 is, so 0.51 is a new crossing
    acted = guarded([0.4, 0.6, 0.7, 0.47, 0.6, 0.44, 0.51], Guard({"forward_kl": 0.5}))
    assert [list(each.items()) for each in acted] == [
        [], [("drift/guard/warn/forward_kl", 0.6)], [], [], [], [], [("drift/guard/warn/forward_kl", 0.51)],
    ]  # fmt: skip
    assert [record.message for record in caplog.records] == [
        "drift guard at step 1: forward_kl is 0.6, limit above 0.5; nothing is changed",
        "drift guard at step 6: forward_kl is 0.51, limit above 0.5; nothing is changed",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_lower_lr_once_a_crossing_and_reset_at_every_reading_beyond() -> None:
    factors: list[float] = []
    guarded([0.6, 0.7, 0.3, 0.6], Guard({"forward_kl": 0.5}, do="lower_lr", factor=0.25), scale_lr=factors.append)
    assert factors == [0.25, 0.25]
    asked = itertools.count()
    guarded([0.6, 0.49, 0.6, 0.3], Guard({"forward_kl": 0.5}, do="reset"), reset=lambda: next(asked))
    assert next(asked) == 2


def test_a_guard_acts_once_where_several_of_its_limits_are_crossed(caplog: pytest.LogCaptureFixture) -> None:
    from untaxed.callbacks._guards import Guards

    factors: list[float] = []
    guard = Guard({"forward_kl": 0.5, "length": {"below": 2}}, do="lower_lr")
    live = Guards([guard, Guard({"forward_kl": 0.4})], Host(scale_lr=factors.append))
    assert set(live.look({"step": 1, "forward_kl": 0.6, "length": 1.0})) == {
        "drift/guard/lower_lr/forward_kl", "drift/guard/lower_lr/length", "drift/guard/warn/forward_kl",
    }  # fmt: skip
    assert factors == [0.5]
    assert live.crossed == [True, True, True]
    assert [record.message for record in caplog.records] == [
        "drift guard at step 1: forward_kl is 0.6, limit above 0.5; length is 1, limit below 2; "
        "the learning rate is multiplied by 0.5",
        "drift guard at step 1: forward_kl is 0.6, limit above 0.4; nothing is changed",
    ]


def test_limits_on_both_sides_and_measures_that_are_not_there() -> None:
    from untaxed.callbacks._guards import Guards

    live = Guards([Guard({"length": {"above": 9, "below": 2}, "distinct_2": {"below": 0.2}})])
    assert live.look({"step": 1, "length": 5.0}) == {}  # distinct_2 undefined
    assert live.look({"step": 2, "length": 1.0, "distinct_2": 0.1}) == {
        "drift/guard/warn/length": 1.0,
        "drift/guard/warn/distinct_2": 0.1,
    }
    assert live.crossed == [False, True, True]


def test_weights_that_are_not_finite_are_named(made: Callable[..., Any]) -> None:
    model, meter = made()
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    meter.step()
    with pytest.raises(RunFailed, match=r"the weights are not finite after step 2 \('model\.norm\.weight' first\)"):
        meter.step()
    stopped: list[bool] = []
    logged: list[dict[str, float]] = []
    model, meter = made(non_finite="stop", host=Host(stop=lambda: stopped.append(True), log=logged.append))
    with torch.no_grad():
        model.model.norm.weight[3] = math.inf
    assert not any(meter.step() for _ in range(2))
    assert stopped == [True]
    assert logged == [{"drift/non_finite": 1.0}]


def test_logits_that_are_not_finite_are_named(made: Callable[..., Any]) -> None:
    model, meter = made()
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)  # finite weights, infinite logits
    meter.step()
    with pytest.raises(RunFailed, match=r"forward_kl is nan after step 2: the policy's logits have diverged"):
        meter.step()


def test_elastic_reset_is_asked() -> None:
    model = nn.Linear(1, 1)
    reset = ElasticResetState(model, decay=1.0, reset_every=100)
    assert not reset.step()
    reset.ask()
    assert reset.due()
    again = ElasticResetState(model, decay=1.0, reset_every=100)
    again.load_state_dict(reset.state_dict())
    reset.skip()  # samples wait: it stays asked
    assert reset.step()
    assert not reset.due()
    assert again.step()
    assert ElasticReset.resets
