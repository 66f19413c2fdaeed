"""Elastic Reset's options, the controls that are rows of their own, and the average alone."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from untaxed import methods
from untaxed.callbacks import EMA, BEMAState, ElasticReset, ElasticResetState, SyncReferenceState, WeightAverage
from untaxed.callbacks._cycle import LONGEST, Cycle
from untaxed.callbacks._reference import counterparts
from untaxed.errors import StoreError, Unsupported
from untaxed.optim import OnDAREAdamW, Pipeline
from untaxed.sites import Context, Host, Setting
from untaxed.weights import same, snapshot, trainable

STEPS = 13


class Training:
    """A model that moves as Adam moves it, and the host that a trainer would make of it."""

    def __init__(self, beta: float = 0.1, kl: float = 3.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.reference = {name: tensor.clone() for name, tensor in trainable(self.model).items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(1)
        self.numbers = {"beta": beta, "kl": kl}
        self.readings: dict[str, float] = {}
        self.steps = 0
        self.host = Host(
            optimizer=self.optimizer,
            reference=lambda: self.reference,
            beta=Setting(lambda: self.numbers["beta"], lambda value: self.numbers.update(beta=value)),
            kl=lambda: self.numbers["kl"],
            drift=lambda: self.readings,
        )

    def step(self) -> None:
        self.steps += 1
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self.generator)
        self.optimizer.step()
        self.readings = {"step": self.steps, "forward_kl": 0.2 * self.steps % 1.5, "entropy": 13.0 - self.steps}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in trainable(self.model).items()}

    def everything(self) -> dict[str, Any]:
        moments = {
            f"{number}/{key}": value.clone()
            for number, state in enumerate(self.optimizer.state.values())
            for key, value in state.items()
        }
        return {**self.weights(), **moments, **{f"ref/{name}": t.clone() for name, t in self.reference.items()}}


OPTIONS: list[dict[str, Any]] = [
    {"decay": 0.8, "reset_every": 4},
    {"decay": 0.8, "reset_every": 4, "update_every": 2, "skip_first": False},
    {"half_life": 3.0, "reset_every": 5},
    {"reset_every": 4, "target": "initial"},
    {"reset_every": 4, "target": "initial", "moments": "cleared"},
    {"decay": 0.8, "reset_every": 4, "reset_average": False},
    {"decay": 0.8, "reset_every": 3, "average_reset_every": 6},
    {"decay": 0.8, "reset_every": 2, "lengthen": 1.5},
    {"decay": 0.8, "reset_when": {"forward_kl": 0.7}},
    {"decay": 0.8, "reset_every": 6, "reset_when": {"forward_kl": 1.1}},
    {"decay": 0.8, "reset_when": {"entropy": {"below": 7.0}}},
    {"decay": 0.8, "reset_every": 4, "moments": "cleared"},
    {"decay": 0.8, "reset_every": 4, "moments": "averaged"},
    {"decay": 0.8, "reset_every": 4, "exclude": ["1.*"]},
    {"decay": 0.8, "reset_every": 4, "reference": "average"},
    {"decay": 0.8, "reset_every": 4, "kl_target": 1.0},
    {"decay": 0.8, "reset_every": 4, "snapshot": "reference"},
    {"decay": 0.8, "reset_every": 4, "device": "cpu"},
]


def play(rule: ElasticReset, steps: int = STEPS) -> tuple[Training, list[int]]:
    training = Training()
    state = rule.between(training.model, training.host)
    resets = []
    for step in range(1, steps + 1):
        training.step()
        assert state.due() == state.step() == (len(resets) < state.resets)  # type: ignore[attr-defined]
        if state.resets > len(resets):  # type: ignore[attr-defined]
            resets.append(step)
    return training, resets


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_a_resume_at_every_step_is_bit_identical(settings: dict[str, Any]) -> None:
    rule = methods.build("elastic_reset", settings)
    assert methods.build("elastic_reset", rule.settings()) == rule
    expected = play(rule)[0]  # type: ignore[arg-type]
    for stop in range(1, STEPS):
        training = Training()
        first = rule.between(training.model, training.host)
        for step in range(1, STEPS + 1):
            training.step()
            first.step()
            if step == stop:
                saved = first.state_dict()
                copied = {
                    key: {name: tensor.clone() for name, tensor in value.items()} if isinstance(value, dict) else value
                    for key, value in saved.items()
                }
                here, reference = training.weights(), training.reference
                with torch.no_grad():  # whoever resumes has a drifted policy, a fresh reference and the first beta
                    if rule.snapshot == "reference":  # type: ignore[attr-defined]
                        for name, tensor in trainable(training.model).items():
                            tensor.copy_(reference[name])
                    elif rule.reference == "average":  # type: ignore[attr-defined]
                        for tensor in reference.values():
                            tensor.zero_()
                first = rule.between(training.model, training.host)
                with torch.no_grad():
                    for name, tensor in trainable(training.model).items():
                        tensor.copy_(here[name])
                first.load_state_dict(copied)
        assert same(training.everything(), expected.everything()), stop
        assert training.numbers == expected.numbers


@pytest.mark.parametrize(
    ("settings", "resets"),
    [
        ({"reset_every": 4}, [4, 8, 12]),
        ({"reset_every": 4, "skip_first": False}, [1, 5, 9, 13]),  # as epochs 0, 4, 8, 12 of the authors' code
        ({"reset_every": 2, "lengthen": 2.0}, [2, 6]),  # cycles of 2, 4, 8
        ({"reset_every": 3, "lengthen": 1.5}, [3, 8]),  # 3, 4.5 rounded up, 6.75 rounded up
        ({"reset_when": {"forward_kl": 0.9}}, [5, 6, 7, 12, 13]),  # readings 1, 1.2, 1.4, then 0.1, ...
        ({"reset_every": 4, "reset_when": {"forward_kl": 0.9}}, [4, 5, 6, 7, 11, 12, 13]),
        ({"reset_when": {"forward_kl": {"above": 0.9}}}, [5, 6, 7, 12, 13]),
        ({"reset_when": {"entropy": {"below": 3.0}}}, [10, 11, 12, 13]),  # readings 12, 11, ...; at the limit, too
        ({"reset_when": {"entropy": {"above": 12, "below": 1}}}, [1, 12, 13]),
        ({"reset_when": {"distinct_2": {"below": 0.5}}}, []),  # not measured where no sample has two tokens
    ],
)
def test_when_it_resets(settings: dict[str, Any], resets: list[int]) -> None:
    assert play(ElasticReset(decay=0.5, **settings))[1] == resets


def test_a_cycle_beyond_all_numbers_is_as_long_as_can_be() -> None:
    cycle = Cycle(20, lengthen=1e160)
    for _ in range(3):
        cycle.begin()
    assert cycle.length() == LONGEST
    assert not cycle.due()


def test_a_reading_leads_to_one_reset() -> None:
    readings = {"step": 3.0, "forward_kl": 2.0}
    cycle = Cycle(None, reset_when={"forward_kl": 1.0}, readings=lambda: readings)
    assert cycle.due()
    cycle.advance()
    cycle.begin()
    assert not cycle.due()  # it speaks of the policy before
    readings["step"] = 4.0
    assert cycle.due()


def test_the_reset_average_is_the_old_one_and_then_initial() -> None:
    training = Training()
    initial = snapshot(training.model)
    state = ElasticResetState(training.model, decay=0.7, reset_every=2, average_reset_every=4, host=training.host)
    beside = WeightAverage(training.model, decay=0.7)
    for step in range(1, 5):
        training.step()
        beside.update()
        state.step()
        if step == 2:
            assert same(training.weights(), beside.tensors())
            assert same(state.state_dict()["average"], beside.tensors())  # on the longer clock it goes on
    assert same(training.weights(), beside.tensors())
    assert same(state.state_dict()["average"], initial)


@pytest.mark.parametrize("skip_first", [True, False])
def test_a_reset_that_is_asked_for_does_not_bring_that_of_the_average_nearer(skip_first: bool) -> None:
    training = Training()
    initial = snapshot(training.model)
    rule = ElasticReset(decay=0.5, reset_every=4, average_reset_every=8, skip_first=skip_first)
    state = ElasticResetState(training.model, rule)
    fell_back = []
    for step in range(1, 15):
        training.step()
        if step in (2, 3):
            state.ask()
        if state.step():
            fell_back.append((step, same(state.state_dict()["average"], initial)))
    asked = [(2, False), (3, False)]
    assert fell_back == (
        [*asked, (7, False), (11, True)] if skip_first else [(1, False), *asked, (7, True), (11, False)]
    )


def test_a_reset_to_initial_keeps_no_average_and_the_moments() -> None:
    training = Training()
    initial = snapshot(training.model)
    state = methods.build("reset_to_initial", {"reset_every": 3}).between(training.model, training.host)
    for _ in range(3):
        training.step()
        moments = [state["exp_avg"].clone() for state in training.optimizer.state.values()]
        state.step()
    assert same(training.weights(), initial)
    assert state.state_dict()["average"] == {}
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, training.optimizer.state.values(), strict=True))


def test_moments_are_cleared_or_averaged() -> None:
    for rule in ("cleared", "averaged"):
        training = Training()
        state = ElasticResetState(training.model, decay=0.5, reset_every=2, moments=rule, host=training.host)
        seen = []
        for _ in range(2):
            training.step()
            seen.append([one["exp_avg"].clone() for one in training.optimizer.state.values()])
            state.step()
        for number, one in enumerate(training.optimizer.state.values()):
            if rule == "cleared":
                assert not one["exp_avg"].any()
                assert not one["exp_avg_sq"].any()
                assert one["step"] == 0
            else:  # from 0: 0.5 * (0.5 * first) + 0.5 * second
                torch.testing.assert_close(one["exp_avg"], 0.25 * seen[0][number] + 0.5 * seen[1][number])
                assert one["step"] == 2


def test_what_is_excluded_is_left_alone() -> None:
    training = Training()
    initial = snapshot(training.model)
    state = ElasticResetState(training.model, decay=1.0, reset_every=2, exclude=("1.*",), host=training.host)
    for _ in range(2):
        training.step()
        here = training.weights()
        state.step()
    now = training.weights()
    for name in now:
        assert torch.equal(now[name], here[name] if name.startswith("1.") else initial[name])
    with pytest.raises(ValueError, match=r"no trainable parameter is called 'v_head\.\*'"):
        ElasticResetState(training.model, decay=0.5, reset_every=2, exclude=("v_head.*",))


def test_the_reference_becomes_the_average() -> None:
    training = Training()
    state = ElasticResetState(training.model, decay=0.5, reset_every=3, reference="average", host=training.host)
    for step in range(1, 4):
        training.step()
        state.step()
        assert same(training.reference, state.state_dict()["average"]), step


def test_beta_follows_its_target_and_none_switches_it_off() -> None:
    training = Training(beta=1.0, kl=3.0)
    state = ElasticResetState(training.model, decay=0.5, reset_every=9, kl_target=1.0, host=training.host)
    state.step()
    assert training.numbers["beta"] == pytest.approx(1.02)  # 3 / 1 - 1 = 2, cut to 0.2
    training.numbers["kl"] = 0.9
    state.step()
    assert training.numbers["beta"] == pytest.approx(1.02 * 0.99)
    ElasticResetState(training.model, decay=0.5, reset_every=9, reference="none", host=training.host)
    assert training.numbers["beta"] == 0
    with pytest.raises(Unsupported, match="kl_target multiplies beta, and beta is 0, which stays 0; set beta above 0"):
        ElasticResetState(training.model, decay=0.5, reset_every=9, kl_target=1.0, host=training.host)


def test_the_reference_serves_as_snapshot_only_where_it_is_initial() -> None:
    training = Training()
    state = ElasticResetState(training.model, decay=0.5, reset_every=2, snapshot="reference", host=training.host)
    assert all(one is training.reference[name] for name, one in state.state_dict()["initial"].items())
    training.step()
    other = ElasticResetState(training.model, decay=0.5, reset_every=2, snapshot="reference", host=training.host)
    with pytest.raises(Unsupported, match="the initial policy to the bit"):
        other.step()
    other.load_state_dict(state.state_dict())  # whoever resumes has a drifted policy and the same reference
    other.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of decay and half_life"),
        ({"decay": 0.5, "half_life": 3.0, "reset_every": 2}, "give one of decay and half_life"),
        ({"half_life": 0.0, "reset_every": 2}, "half_life must be a number of optimizer steps above 0"),
        ({"decay": 0.5}, "reset_every is missing: give it, or reset_when"),
        ({"decay": 0.5, "reset_every": 2, "lengthen": 0.5}, "lengthen must be at least 1"),
        ({"decay": 0.5, "reset_every": 2, "average_reset_every": 3}, "a multiple of reset_every"),
        ({"decay": 0.5, "reset_every": 2, "average_reset_every": 4, "lengthen": 2.0}, "on a steady clock alone"),
        ({"decay": 0.5, "reset_when": {"forward_kl": -1.0}}, "the limit above of forward_kl must be a number above 0"),
        ({"decay": 0.5, "reset_every": 2, "reset_when": {}}, "limits are given by measure"),
        ({"decay": 0.5, "reset_when": {"forward_kl": {}}}, "forward_kl has no limit; write"),
        ({"decay": 0.5, "reset_when": {"entropy": 0.3}}, "entropy may leave its range on both sides"),
        ({"decay": 0.5, "reset_every": 2, "target": "first"}, "target must be one of average, initial"),
        ({"decay": 0.5, "reset_every": 2, "target": "initial"}, "decay needs an average"),
        ({"reset_every": 2, "target": "initial", "moments": "averaged"}, "moments needs an average"),
        ({"reset_every": 2, "target": "initial", "reference": "average"}, "reference needs an average"),
        ({"decay": 0.5, "reset_every": 2, "lengthen": "2"}, "lengthen must be a finite number, got '2'"),
        ({"decay": 0.5, "reset_every": 2, "lengthen": None}, "lengthen must be a finite number, got None"),
        ({"decay": 0.5, "reset_every": 2, "kl_target": "a"}, "kl_target must be a finite number, got 'a'"),
        ({"decay": 0.5, "reset_every": 2, "exclude": 5}, "exclude must be a list of shell patterns, such as"),
        ({"decay": 0.5, "reset_every": 2, "exclude": [3]}, "exclude must be a list of shell patterns, such as"),
        ({"decay": 0.5, "reset_every": 2, "exclude": "lm_head.*"}, "exclude must be a list of shell patterns"),
        ({"decay": 0.5, "reset_every": 2, "skip_first": "false"}, "skip_first must be True or False, got 'false'"),
        ({"decay": 0.5, "reset_every": 2, "reset_average": "no"}, "reset_average must be True or False, got 'no'"),
        ({"decay": 0.5, "reset_every": 2, "kl_target": 0.0}, "kl_target must be above 0"),
        ({"decay": 0.5, "reset_every": 2, "snapshot": "reference", "reference": "average"}, "stays initial"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticReset(**settings)


def test_settings_come_in_one_way() -> None:
    rule = ElasticReset(decay=0.5, reset_every=2)
    for given, settings, message in (
        (rule, {"decay": 0.1}, r"give the settings as one ElasticReset\(…\), or by name, got .* and decay"),
        (0.9, {}, r"give the settings as one ElasticReset\(…\), or by name, got 0\.9"),
    ):
        with pytest.raises(ValueError, match=message):
            ElasticResetState(nn.Linear(1, 1), given, **settings)  # type: ignore[arg-type]
    for make in (lambda model: ElasticResetState(model, rule), lambda model: WeightAverage(model, decay=0.5)):
        with pytest.raises(ValueError, match=r"a model \(torch.nn.Module\) is needed, .* got \[1\]"):
            make([1])
    for settings in ({"exclude": "a.*"}, {"bias_correction": "no"}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            EMA(decay=0.5, **settings)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            WeightAverage(nn.Linear(1, 1), decay=0.5, **settings)  # type: ignore[arg-type]


def test_an_average_that_is_never_reset_needs_no_initial_weights() -> None:
    model = nn.Linear(2, 1)
    state = methods.build("reset_to_average", {"decay": 0.5, "reset_every": 2}).between(model)
    saved = state.state_dict()
    assert saved["initial"] == {}
    state.load_state_dict({**saved, "initial": snapshot(model)})  # as earlier runs saved it
    assert state.state_dict()["initial"] == {}
    with pytest.raises(ValueError, match="says where the initial weights are kept; none are"):
        ElasticReset(decay=0.5, reset_every=2, reset_average=False, snapshot="reference")


def test_what_is_kept_is_said_of_a_whole_cycle() -> None:
    rule = {"decay": 0.995, "reset_every": 17}
    assert "4.4% of a cycle's displacement is kept at the first reset, and" in ElasticReset(**rule).tell()
    told = ElasticReset(**rule, skip_first=False).tell()  # the reset after the first update keeps another share
    assert "4.4% of a cycle's displacement is kept at the first reset of a whole cycle, and" in told


def test_what_a_loop_must_show() -> None:
    model = nn.Linear(2, 1)
    for settings, message in (
        ({"reset_when": {"forward_kl": 1.0}}, "needs a drift meter"),
        ({"reset_every": 2, "moments": "cleared"}, "needs the optimizer"),
        ({"reset_every": 2, "reference": "average"}, "needs the KL term's reference"),
        ({"reset_every": 2, "kl_target": 1.0}, "rloo or grpo"),
        ({"reset_every": 2, "reference": "none"}, "rloo or grpo"),
    ):
        with pytest.raises(Unsupported, match=message):
            ElasticResetState(model, decay=0.5, **settings)
    with pytest.raises(Unsupported, match="kl_target changes the KL term of rloo and grpo; this is dpo"):
        ElasticReset(decay=0.5, reset_every=2, kl_target=1.0).check(Context("dpo", 10))


# --- the average ---------------------------------------------------------------------------------------------------


def test_a_half_life_is_one() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, half_life=6, update_every=2)
    nn.init.ones_(model.weight)
    for _ in range(6):
        average.step()
    assert average.tensors()["weight"].item() == pytest.approx(0.5)


def test_a_bias_is_taken_out_and_a_warm_up_forgets_the_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 7.0)
    corrected = WeightAverage(model, decay=0.9, bias_correction=True)
    warm = WeightAverage(model, decay=0.9, warm_up=1)
    with pytest.raises(ValueError, match="before the first update"):
        corrected.tensors()
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        corrected.step()
        warm.step()
    assert corrected.tensors()["weight"].item() == pytest.approx((0.09 * 1 + 0.1 * 2) / 0.19)
    assert warm.tensors()["weight"].item() == pytest.approx(2 / 3 * (0.5 * 7 + 0.5 * 1) + 1 / 3 * 2)  # 1/2, then 2/3
    saved = corrected.state_dict()
    again = WeightAverage(model, decay=0.9, bias_correction=True)
    again.load_state_dict(saved)
    assert same(again.tensors(), corrected.tensors())


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"half_life": 1e17}])
def test_a_bias_that_would_be_divided_by_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="which is 0 at decay 1; take a smaller decay"):
        EMA(**settings, bias_correction=True)
    with pytest.raises(ValueError, match="which is 0 at decay 1; take a smaller decay"):
        WeightAverage(two_layers(), **settings, bias_correction=True)


def test_in_bfloat16_a_gap_of_one_ulp_closes() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay=0.99)
    nn.init.constant_(model.weight, 1.0078125)
    for _ in range(1000):
        average.step()
    with average.swapped_in():
        assert model.weight.item() == 1.0078125


def test_a_swap_gives_the_weights_back_whatever_happens() -> None:
    training = Training()
    average = WeightAverage(training.model, decay=0.5)
    training.step()
    average.step()
    before = training.weights()
    pointers = [parameter.data_ptr() for parameter in training.model.parameters()]
    seen = []
    with contextlib.suppress(KeyboardInterrupt), average.swapped_in(training.model):
        seen.append(training.weights())
        raise KeyboardInterrupt
    assert not same(seen[0], before)
    assert same(training.weights(), before)
    assert pointers == [parameter.data_ptr() for parameter in training.model.parameters()]


def test_the_average_beside_a_policy_changes_nothing() -> None:
    training, plain = Training(), Training()
    live = EMA(decay=0.8).between(training.model)
    average = WeightAverage(plain.model, decay=0.8)
    for _ in range(5):
        for one in (training, plain):
            one.step()
        assert not live.due()
        assert not live.step()
        average.step()
    assert same(training.weights(), plain.weights())
    assert same(live.variant(), average.tensors())  # type: ignore[attr-defined]


# --- value heads ---------------------------------------------------------------------------------------------------


class WithValueHead(nn.Module):
    """As TRL's policies with a critic: a language model and a `v_head` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)
        self.v_head = nn.Sequential(nn.Linear(2, 1))


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("elastic_reset", {"decay": 1.0, "reset_every": 1}),
    ("reset_to_initial", {"reset_every": 1}),
    ("reset_to_average", {"decay": 1.0, "reset_every": 1}),
    ("drift_triggered_reset", {"decay": 1.0, "forward_kl": 0.1}),
    ("ema", {"decay": 1.0}),
]


@pytest.mark.parametrize("headless", [False, True])
def test_the_reference_of_a_policy_with_a_value_head_follows_the_rest(headless: bool) -> None:
    policy, reference = WithValueHead(), WithValueHead()
    if headless:
        del reference.v_head
    head = {name: tensor.clone() for name, tensor in reference.state_dict().items() if name.startswith("v_head")}
    sync = SyncReferenceState(policy, reference, share=1.0, sync_every=1)
    sync.step()
    assert torch.equal(reference.model.weight, policy.model.weight)
    bema = BEMAState(policy, reference, update_every=1)
    bema.step()
    host = Host(reference=lambda: counterparts(policy, reference))
    for exclude in ((), None):
        rule = ElasticReset(decay=0.5, reset_every=2, reference="average", exclude=exclude)
        rule.between(policy, host).step()
    rule = ElasticReset(decay=0.5, reset_every=2, snapshot="reference")
    reference.model.load_state_dict(policy.model.state_dict())
    rule.between(policy, host).step()
    assert all(torch.equal(reference.state_dict()[name], tensor) for name, tensor in head.items())


@pytest.mark.parametrize(("name", "settings"), ROWS, ids=[name for name, _ in ROWS])
def test_a_value_head_is_left_alone_unless_nothing_is(name: str, settings: dict[str, Any]) -> None:
    host = Host(drift=lambda: {"step": 1, "forward_kl": 1.0})
    for given, left in (
        ({}, {"v_head.0.weight", "v_head.0.bias"}),
        ({"exclude": None}, set()),
        ({"exclude": ["model.bias"]}, {"v_head.0.weight", "v_head.0.bias", "model.bias"}),
    ):
        model = WithValueHead()
        live = methods.build(name, {**settings, **given}).between(model, host)
        assert set(live.state_dict()["average"] or live.state_dict()["initial"]) == {*trainable(model)} - left
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        moved = {key: tensor.clone() for key, tensor in trainable(model).items()}
        if live.step():
            assert {key for key, tensor in trainable(model).items() if torch.equal(tensor, moved[key])} == left


def test_settings_that_came_later_leave_the_keys_of_runs_alone() -> None:
    assert methods.build("elastic_reset", {"decay": 0.5, "reset_every": 2}).settings() == {
        "decay": 0.5, "reset_every": 2, "update_every": 1,
    }  # fmt: skip
    assert methods.build("reset_to_initial", {"reset_every": 2}).settings() == {
        "reset_every": 2, "moments": "kept", "exclude": [],
    }  # fmt: skip
    assert methods.build("reset_to_average", {"decay": 0.5, "reset_every": 2}).settings() == {
        "decay": 0.5, "reset_every": 2, "update_every": 1,
    }  # fmt: skip
    assert methods.build("drift_triggered_reset", {"decay": 0.5, "forward_kl": 0.1}).settings() == {
        "forward_kl": 0.1, "decay": 0.5, "update_every": 1,
    }  # fmt: skip
    assert methods.build("ema", {"decay": 0.5}).settings() == {
        "decay": 0.5, "half_life": None, "update_every": 1, "warm_up": 0, "bias_correction": False,
    }  # fmt: skip
    for name, settings in ROWS:
        for exclude in (None, ["a.*"]):
            row = methods.build(name, {**settings, "exclude": exclude})
            assert row.settings()["exclude"] == exclude
            assert methods.build(name, row.settings()) == row


# --- moments --------------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def take_step(model: nn.Module, optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def hf_adafactor(parameters: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(list(parameters), lr=0.01, relative_step=False, scale_parameter=False)


def merged(parameters: Any) -> Any:
    named = [(f"p{number}", parameter) for number, parameter in enumerate(parameters)]
    return OnDAREAdamW(named, lr=0.01, merge_weight=0.0, density=1.0)


OPTIMIZERS: dict[str, Any] = {
    "AdamW": torch.optim.AdamW,
    "AMSGrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
    "Adafactor": torch.optim.Adafactor,
    "transformers' Adafactor": hf_adafactor,
    "OnDAREAdamW": merged,
    "Pipeline": lambda parameters: Pipeline(torch.optim.AdamW(enumerate_names(parameters)), update=keep_update),
}


def enumerate_names(parameters: Any) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{number}", parameter) for number, parameter in enumerate(parameters)]


def keep_update(update: torch.Tensor, old: torch.Tensor, entry: Any, state: Any) -> torch.Tensor:
    return update


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cleared_optimizer_goes_on_as_a_new_one(name: str) -> None:
    model, fresh = two_layers(), two_layers()
    optimizer, new = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](fresh.parameters())
    rule = ElasticReset(reset_every=2, target="initial", moments="cleared")
    state = rule.between(model, Host(optimizer=optimizer))
    for step in range(2):
        take_step(model, optimizer, step)
        state.step()
    for step in (2, 3):  # the policy is initial again; Adafactor's row and NAdam's product must be, too
        take_step(model, optimizer, step)
        take_step(fresh, new, step)
        assert same(trainable(model), trainable(fresh)), step


def test_an_optimizer_that_makes_its_state_at_once_cannot_be_cleared() -> None:
    model = two_layers()
    rule = ElasticReset(reset_every=2, target="initial", moments="cleared")
    with pytest.raises(Unsupported, match=r"Adagrad makes its state when it is built .* take moments 'kept' or"):
        rule.between(model, Host(optimizer=torch.optim.Adagrad(model.parameters())))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("NAdam", "mu_product"),
        ("Adafactor", "row_var"),
        ("transformers' Adafactor", "exp_avg_sq_row"),
        ("Rprop", "prev"),  # and step sizes, which lie as the parameter does and would go to 0
    ],
)
def test_what_has_no_average_is_refused(name: str, what: str) -> None:
    model = two_layers()
    optimizer = OPTIMIZERS[name](model.parameters())
    rule = ElasticReset(decay=0.5, reset_every=2, moments="averaged")
    state = rule.between(model, Host(optimizer=optimizer))
    take_step(model, optimizer, 0)
    with pytest.raises(Unsupported, match=f"keeps '{what}' of '0.weight', which is no moment"):
        state.step()


def test_averaged_moments_leave_the_weights_that_an_optimizer_keeps() -> None:
    model = two_layers()
    optimizer = OnDAREAdamW(model.named_parameters(), lr=0.01, merge_weight=0.0, density=1.0, merge_every=3)
    state = ElasticReset(decay=0.5, reset_every=9, moments="averaged").between(model, Host(optimizer=optimizer))
    take_step(model, optimizer, 0)
    state.step()
    assert any("at_merge" in one for one in optimizer.state.values())
    assert {key.rpartition("/")[2] for key in state.state_dict()["moments"]} == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("moments", ["kept", "averaged", "cleared"])
def test_the_anchor_of_merges_outlives_resets(moments: Any) -> None:
    model = two_layers()
    delta = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    anchors = {name: parameter.detach() + 0.5 for name, parameter in model.named_parameters()}
    pulled = {"merge_weight": 0.1, "density": 1.0, "pull": "anchor", "anchor_at": 0.5}
    optimizer = OnDAREAdamW(model.named_parameters(), lr=0.01, delta=delta, **pulled)
    state = ElasticReset(decay=0.5, reset_every=2, moments=moments).between(model, Host(optimizer=optimizer))
    for step in range(6):
        take_step(model, optimizer, step)
        for name, parameter in model.named_parameters():
            assert torch.equal(optimizer.state[parameter]["anchor"], anchors[name]), step
        state.step()


@pytest.mark.parametrize("settings", [{"reset_average": False}, {"average_reset_every": 4}])
def test_the_moments_average_goes_on_where_that_of_the_weights_does(settings: dict[str, Any]) -> None:
    training = Training()
    rule = ElasticReset(decay=0.5, reset_every=2, moments="averaged", **settings)
    state = rule.between(training.model, training.host)
    for _ in range(2):
        training.step()
        state.step()
    moments = state.state_dict()["moments"]
    assert all(moments[f"0.weight/{key}"].any() for key in ("exp_avg", "exp_avg_sq"))
    assert torch.equal(moments["0.weight/exp_avg"], training.optimizer.state[training.model[0].weight]["exp_avg"])
    for _ in range(2):
        training.step()
        state.step()
    assert state.state_dict()["moments"]["0.weight/exp_avg"].any() == ("reset_average" in settings)


def test_saved_moments_of_another_shape_are_refused_and_nothing_taken_up() -> None:
    training = Training()
    state = ElasticReset(decay=0.5, reset_every=3, moments="averaged").between(training.model, training.host)
    training.step()
    state.step()
    good = state.state_dict()
    before = {key: tensor.clone() for key, tensor in good["moments"].items()}
    changed = {key: torch.zeros_like(tensor) for key, tensor in good["average"].items()}
    for bad in ({"0.weight/exp_avg": torch.zeros(2)}, {"5.weight/exp_avg": torch.zeros(2)}):
        with pytest.raises(StoreError, match=r"the saved moments '\d\.weight/exp_avg' have the shape \(2,\)"):
            state.load_state_dict({**good, "average": changed, "moments": bad})
    assert same(state.state_dict()["moments"], before)
    assert state.state_dict()["average"]["0.weight"].any()
