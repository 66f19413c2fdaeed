from __future__ import annotations

import math
from typing import Any

import pytest

from untaxed.errors import SpecError
from untaxed.training import ALGORITHMS, check_arguments, machine_defaults
from untaxed.training.arguments import RESERVED, to_config

PAIRS = {"batch_size": 32}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_defaults_are_good_arguments(name: str) -> None:
    row = ALGORITHMS[name]
    assert check_arguments(name, row.defaults) == dict(row.defaults)


def test_values_take_their_fields_type() -> None:
    given = {"learning_rate": "1e-6", "beta": 1, "max_steps": "20", "warmup_steps": 3, "max_length": None}
    checked = check_arguments("dpo", given)  # YAML reads 1e-6 as text
    assert checked == {"learning_rate": 1e-6, "beta": 1.0, "max_steps": 20, "warmup_steps": 3, "max_length": None}
    assert isinstance(checked["beta"], float)
    assert check_arguments("dpo", {"loss_type": ["sigmoid", "sft"]}) == {"loss_type": ["sigmoid", "sft"]}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dop", {}, "unknown algorithm 'dop'; did you mean 'dpo'? known: dpo, grpo, ipo, kto, rloo"),
        ("dpo", {"learning_rat": 0.5}, "algorithm dpo has no argument 'learning_rat'; did you mean 'learning_rate'?"),
        ("dpo", {"num_generations": 4}, "algorithm dpo has no argument 'num_generations'"),
        ("dpo", {"xyzzy": 4}, "algorithm dpo has no argument 'xyzzy'; see the fields of TRL's config class"),
        ("dpo", {"learning_rate": "fast"}, "algorithm dpo: learning_rate: should be a valid number"),
        ("dpo", {"learning_rate": True}, "algorithm dpo: learning_rate must be a number, got True"),
        ("dpo", {"max_steps": 2.5}, "algorithm dpo: max_steps: should be a valid integer"),
        ("dpo", {"max_steps": 0}, "algorithm dpo: max_steps must be at least 1, got 0"),
        ("dpo", {"learning_rate": -1e-6}, "algorithm dpo: learning_rate must be above 0"),
        ("dpo", {"learning_rate": math.nan}, "algorithm dpo: learning_rate must be finite, got nan"),
        ("dpo", {"beta": 0}, "algorithm dpo: beta must be above 0, got 0"),
        ("rloo", {"beta": -0.1}, "algorithm rloo: beta must be at least 0, got -0.1"),
        ("rloo", {"num_generations": 1}, "algorithm rloo: num_generations must be at least 2, got 1"),
        ("dpo", {"batch_size": 0}, "algorithm dpo: batch_size must be at least 1, got 0"),
        ("dpo", {"per_device_train_batch_size": 4}, "cannot be set: give batch_size, and micro_batch_size"),
        ("ipo", {"loss_type": "sigmoid"}, "algorithm ipo: loss_type cannot be set: ipo is DPOTrainer with loss_type"),
    ],
)
def test_a_mistake_is_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_arguments(name, arguments)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("key", RESERVED)
def test_what_a_study_decides_cannot_be_set(key: str) -> None:
    with pytest.raises(SpecError, match=f"algorithm grpo: {key} cannot be set: "):
        check_arguments("grpo", {key: 1})


@pytest.mark.parametrize(
    ("arguments", "world", "per_device", "accumulation"),
    [
        ({"batch_size": 32}, 1, 32, 1),
        ({"batch_size": 32, "micro_batch_size": 8}, 1, 8, 4),
        ({"batch_size": 32, "micro_batch_size": 8}, 2, 8, 2),
        ({"batch_size": 96}, 1, 48, 2),  # the largest divisor that is at most 64
        ({"batch_size": 7}, 1, 7, 1),
    ],
)
def test_a_batch_is_micro_batches_times_accumulation(
    arguments: dict[str, int], world: int, per_device: int, accumulation: int
) -> None:
    config = to_config(ALGORITHMS["dpo"], arguments, world)
    assert config["per_device_train_batch_size"] == per_device
    assert config["gradient_accumulation_steps"] == accumulation
    assert to_config(ALGORITHMS["kto"], arguments, world)["per_device_train_batch_size"] == 2 * per_device


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"batch_size": 32, "num_generations": 4}, 32),
        ({"batch_size": 32, "micro_batch_size": 8, "num_generations": 4}, 32),
        ({"batch_size": 8, "num_generations": 2, "generation_batch_size": 16}, 16),
        ({"batch_size": 8, "micro_batch_size": 4, "num_generations": 2, "steps_per_generation": 6}, 24),
        ({"batch_size": 8}, 8),
    ],
)
def test_completions_are_sampled_for_whole_steps(arguments: dict[str, int], size: int) -> None:
    config = to_config(ALGORITHMS["rloo"], arguments, 1)
    assert config["generation_batch_size"] == size
    assert "steps_per_generation" not in config


@pytest.mark.parametrize(
    ("name", "arguments", "world", "message"),
    [
        ("dpo", {"batch_size": 9}, 2, r"batch_size \(9 pairs\) must be a multiple of the 2 processes"),
        ("dpo", {"batch_size": 9, "micro_batch_size": 4}, 1, r"multiple of micro_batch_size \(4\)"),
        (
            "rloo",
            {"batch_size": 9, "num_generations": 2},
            1,
            r"\(9 completions\) must be a multiple of num_gen",
        ),
        ("grpo", {"batch_size": 12}, 1, r"\(12 completions\) must be a multiple of num_generations \(8\)"),
        (
            "rloo",
            {"batch_size": 8, "generation_batch_size": 12, "num_generations": 2},
            1,
            r"generation_batch_size \(12 completions\) must be a multiple of batch_size \(8\)",
        ),
        ("rloo", {"batch_size": 8, "generation_batch_size": 8, "steps_per_generation": 1}, 1, "not both"),
    ],
)
def test_sizes_that_do_not_divide_are_named(name: str, arguments: dict[str, int], world: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        to_config(ALGORITHMS[name], arguments, world)


def test_machine_defaults_suit_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    defaults = machine_defaults()
    assert defaults["use_cpu"]
    assert not defaults["bf16"]
    assert not defaults["dataloader_pin_memory"]
    assert defaults["report_to"] == []


def test_machine_defaults_use_bfloat16_only_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for has_it in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda has_it=has_it: has_it)
        assert machine_defaults()["bf16"] is has_it
        assert not machine_defaults()["use_cpu"]
