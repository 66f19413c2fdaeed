import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from untaxed.errors import DataError
from untaxed.measuring import Sampling, Subject, Suite, drift, measure, subject
from untaxed.measuring.perplexity import perplexity
from untaxed.measuring.suite_spec import DRIFT

from .conftest import tiny_llama, words
from .test_sampling import drawn


def make_suite(*measures):
    import random

    prompts = tuple(words(length, random.Random(length)) for length in (1, 4, 2, 6, 3, 3, 5, 2))
    return Suite(measures, (), (), {"validation": prompts}, Sampling(max_new_tokens=10, batch_size=4))


def direct_kl(p_model, q_model, writer, prompts="prompts"):
    """Sum and count a sample, one sample at a time with full logits in float64."""
    rows = []
    written = writer.completions("validation", prompts)
    for ids, new in zip(written.prompt_ids, drawn(written), strict=True):
        tokens = torch.tensor([[*ids, *new]])
        p, q = (m(tokens).logits[0, len(ids) - 1 : -1].double().log_softmax(-1) for m in (p_model, q_model))
        rows.append([(p.exp() * (p - q)).sum().item(), len(new)])
    return np.array(rows)


@pytest.fixture(params=["kept", "computed anew"])
def pair(request, model, other_model, tokenizer, monkeypatch):
    if request.param == "computed anew":
        monkeypatch.setattr(subject, "LOGIT_ENTRIES", 0)
    suite = make_suite(drift.forward_kl(), drift.reverse_kl(), drift.entropy(), drift.length())
    initial = Subject(model, tokenizer, suite)
    return initial, Subject(other_model, tokenizer, suite, initial)


@torch.no_grad()
def test_kl_in_both_directions_is_exact(pair, model, other_model):
    initial, policy = pair
    made = measure(policy, "validation").scores
    assert np.allclose(made["drift.forward_kl"], direct_kl(model, other_model, initial), rtol=1e-4)
    assert np.allclose(made["drift.reverse_kl"], direct_kl(other_model, model, policy), rtol=1e-4)


@torch.no_grad()
def test_general_prompts_are_a_set_of_their_own(model, other_model, tokenizer, monkeypatch):
    measures = (drift.forward_kl(), drift.length(), *(DRIFT[name]() for name in DRIFT if name.startswith("general_")))
    suite = dataclasses.replace(make_suite(*measures), general={"validation": ("w9 w8", "w7", "w6 w5 w4")})
    initial = Subject(model, tokenizer, suite)
    policy = Subject(other_model, tokenizer, suite, initial)
    made = measure(policy, "validation").scores
    assert [len(made[f"drift.{one.name}"]) for one in measures] == [8, 8, 3, 3, 3, 3, 3]
    forward = direct_kl(model, other_model, initial, "general")
    assert np.allclose(made["drift.general_forward_kl"], forward, rtol=1e-4)
    assert np.allclose(made["drift.general_reverse_kl"], direct_kl(other_model, model, policy, "general"), rtol=1e-4)
    assert np.allclose(made["drift.forward_kl"], direct_kl(model, other_model, initial), rtol=1e-4)
    lengths = policy.completions("validation", "general").mask.sum(1).tolist()
    assert made["drift.general_length"][:, 0].tolist() == made["drift.general_entropy"][:, 1].tolist() == lengths
    assert made["drift.general_top_choice"][:, 1].tolist() == forward[:, 1].tolist()


def test_value_is_the_mean_over_tokens(pair):
    made = measure(pair[1], "validation")
    total, count = made.scores["drift.forward_kl"].sum(0)
    assert made.values["drift"]["forward_kl"] == pytest.approx(total / count)
    assert made.values["drift"]["forward_kl"] > 0.01
    assert count == pair[0].completions("validation").mask.sum()


def test_the_initial_model_has_no_drift_at_all(pair, tokenizer):
    initial, _ = pair
    twin = Subject(copy.deepcopy(initial.model), tokenizer, initial.suite, initial)
    for one in (initial, twin):
        values = measure(one, "validation").values["drift"]
        assert (values["forward_kl"], values["reverse_kl"]) == (0.0, 0.0)


def test_forward_kl_reads_samples_of_the_initial_model(pair, tokenizer):
    initial, policy = pair
    measure(policy, "validation", ["drift.forward_kl"])
    assert list(initial._completions) == [("prompts", "validation")]
    assert not policy._completions


@torch.no_grad()
def test_entropy_and_length_of_own_samples(pair, other_model):
    policy = pair[1]
    made = measure(policy, "validation").scores
    samples = drawn(policy.completions("validation"))
    assert made["drift.length"][:, 0].tolist() == [len(ids) for ids in samples]
    for row, given, new in zip(
        made["drift.entropy"], policy.completions("validation").prompt_ids, samples, strict=True
    ):
        logits = other_model(torch.tensor([[*given, *new]])).logits[0, len(given) - 1 : -1].double()
        expected = torch.distributions.Categorical(logits=logits).entropy().sum().item()
        assert row.tolist() == pytest.approx([expected, len(new)], rel=1e-4)


@torch.no_grad()
def test_perplexity_of_given_texts(model, tokenizer, rng):
    texts = [words(length, rng) for length in (2, 9, 5)]
    made = measure(Subject(model, tokenizer, make_suite(perplexity("human", {"validation": texts}))), "validation")
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        nll = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        expected.append([nll, ids.shape[1] - 1])
    scores = made.scores["drift.human"]
    assert np.allclose(scores, expected, rtol=1e-4)
    total, count = np.sum(expected, axis=0)
    assert made.values["drift"]["human"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_perplexity_reads_as_far_as_it_is_told(model, tokenizer, rng):
    text = words(30, rng)
    start = " ".join(text.split()[:12])
    cut, short = (
        perplexity("human", {"validation": [one]}, max_tokens=limit) for one, limit in ((text, 12), (start, None))
    )
    made = [measure(Subject(model, tokenizer, make_suite(m)), "validation").scores["drift.human"] for m in (cut, short)]
    assert made[0].tolist() == made[1].tolist()
    assert made[0][0, 1] == 11


def test_a_text_that_cannot_be_scored_is_named(tokenizer):
    model = tiny_llama(context=8)
    for text, message in (
        ("w1", "human validation text 0: expected at least two tokens"),
        ("w1 " * 20, "all 1 items are longer than the model's context of 8"),
    ):
        with pytest.raises(DataError, match=message):
            measure(Subject(model, tokenizer, make_suite(perplexity("human", {"validation": [text]}))), "validation")
    with pytest.raises(DataError, match="'human' has no test texts"):
        perplexity("human", {"test": []})


@pytest.mark.parametrize("unit", ["word", "byte"])
@torch.no_grad()
def test_perplexity_a_word_or_a_byte_scores_the_whole_text(model, tokenizer, unit):
    """The first token, too, after the beginning-of-text token (1); what is counted are words or bytes of the text."""
    text = "w1 w23 w4"
    logits = model(torch.tensor([[1, *tokenizer(text)["input_ids"]]])).logits[0].double().log_softmax(-1)
    nll = -sum(logits[at, token].item() for at, token in enumerate(tokenizer(text)["input_ids"]))
    made = measure(
        Subject(model, tokenizer, make_suite(perplexity("human", {"validation": [text]}, unit=unit))), "validation"
    )
    assert made.scores["drift.human"][0].tolist() == pytest.approx([nll, {"word": 3, "byte": 9}[unit]], rel=1e-4)


def test_words_are_not_cut_by_tokens():
    with pytest.raises(DataError, match="`max_tokens` cuts a text, whose words are counted whole"):
        perplexity("human", {"test": ["w1 w2"]}, max_tokens=3, unit="word")


def test_longer_texts_are_left_out_and_counted(tokenizer):
    one = perplexity("human", {"validation": ["w1 " * 20, "w1 w2", "w3 w4 w5"]})
    made = measure(Subject(tiny_llama(context=8), tokenizer, make_suite(one)), "validation")
    assert made.scores["drift.human"][:, 1].tolist() == [1, 2]
    assert made.notes == {"drift.human": ["too long: 1 of 3 left out"]}
