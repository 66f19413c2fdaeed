import copy

import numpy as np
import pytest

from untaxed.errors import RunFailed, SpecError
from untaxed.measuring import Item, Sampling, Subject, Suite, exact_match, forward_kl, measure, reward


@pytest.fixture
def subject(model, tokenizer):
    items = [Item("w0", "w1"), Item("w2", "w3")]
    return Subject(
        model,
        tokenizer,
        Suite(
            measures=(
                reward("proxy", lambda p, c: [0.25] * len(c)),
                exact_match("facts", {"validation": items, "test": items}),
                forward_kl(),
            ),
            select=("facts",),
            report=(),
            prompts={"validation": ("w0", "w1"), "test": ("w2",)},
            sampling=Sampling(max_new_tokens=3),
        ),
    )


def test_every_measure_has_its_value_and_scores(subject):
    made = measure(subject, "validation")
    assert {group: list(values) for group, values in made.values.items()} == {
        "reward": ["proxy"],
        "abilities": ["facts"],
        "drift": ["forward_kl"],
    }
    assert {key: (rows.shape, rows.dtype) for key, rows in made.scores.items()} == {
        "reward.proxy": ((2, 1), np.float64),
        "abilities.facts": ((2, 1), np.float64),
        "drift.forward_kl": ((2, 2), np.float64),
    }
    assert [text["proxy"] for text in made.texts] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["abilities.facts"], ["abilities.facts"]),
        (["drift", "reward.proxy"], ["reward.proxy", "drift.forward_kl"]),
        ([], []),
    ],
)
def test_some_measures_only(subject, names, keys):
    made = measure(subject, "test", names)
    assert list(made.scores) == keys
    assert set(made.values) == {"reward", "abilities", "drift"}
    assert bool(made.texts) == ("reward.proxy" in keys)


def test_an_unknown_measure_is_refused_with_the_nearest(subject):
    with pytest.raises(SpecError, match=r"no measure 'abilities.fact'; did you mean 'abilities.facts'\?"):
        measure(subject, "test", ["abilities.fact"])


def test_a_model_that_has_diverged_fails_its_run(subject, tokenizer):
    broken = copy.deepcopy(subject.model)
    broken.lm_head.weight.data.fill_(float("nan"))
    diverged = Subject(broken, tokenizer, subject.suite, initial=subject)
    with pytest.raises(RunFailed, match=r"drift.forward_kl of item 0 is \[nan, .*\]: the model has diverged"):
        measure(diverged, "test", ["drift.forward_kl"])


def test_a_subject_is_its_own_initial(subject):
    assert subject.initial is subject


def test_completions_are_drawn_once_a_split(subject):
    assert subject.completions("test") is subject.completions("test")
    assert len(subject.completions("validation").texts) == 2
