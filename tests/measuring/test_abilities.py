import copy
import random

import numpy as np
import pytest
import torch

from untaxed.errors import DataError, RunFailed
from untaxed.measuring import Choice, Item, Subject, Suite, exact_match, measure, multiple_choice

from .conftest import WORDS, tiny_llama, words
from .test_sampling import greedy


def scores(ability, model, tokenizer, split="validation"):
    subject = Subject(model, tokenizer, Suite((ability,), (ability.name,), (), {}))
    return measure(subject, split).scores[ability.key]


def mixed_items(model, tokenizer, count=80):
    """Answers that greedy decoding writes, the same with one word changed, and random ones."""
    rng = random.Random(0)
    items = []
    for number in range(count):
        prompt = words(rng.randint(1, 9), rng)
        answer = tokenizer.decode(greedy(model, tokenizer, prompt, rng.randint(1, 5))).split()
        if number % 3 == 1:
            answer[rng.randrange(len(answer))] = rng.choice(WORDS)
        items.append(Item(prompt, words(3, rng) if number % 3 == 2 else " ".join(answer)))
    return [item for item in items if "<eos>" not in item.answer]


def test_teacher_forcing_equals_greedy_decoding(model, tokenizer):
    items = mixed_items(model, tokenizer)
    made = scores(exact_match("facts", {"validation": items}), model, tokenizer)
    decoded = []
    for item in items:
        wanted = tokenizer(item.answer)["input_ids"]
        decoded.append(float(greedy(model, tokenizer, item.prompt, len(wanted)) == wanted))
    assert made.shape == (len(items), 1)
    assert made[:, 0].tolist() == decoded
    assert 0.2 < made.mean() < 0.8


def test_with_eos_the_model_must_also_stop(model, tokenizer):
    items = mixed_items(model, tokenizer)
    prompts = [item.prompt for item in items]
    whole = [tokenizer.decode(greedy(model, tokenizer, prompt, 30)) for prompt in prompts]
    stopping = [
        Item(prompt, text.removesuffix("<eos>").strip())
        for prompt, text in zip(prompts, whole, strict=True)
        if text.endswith("<eos>") and text != "<eos>"
    ]
    assert stopping
    cut = [Item(item.prompt, " ".join(item.answer.split()[:-1])) for item in stopping if " " in item.answer]
    loose, strict = (exact_match("facts", {"validation": stopping + cut}, eos=eos) for eos in (False, True))
    assert scores(loose, model, tokenizer).all()
    assert scores(strict, model, tokenizer)[:, 0].tolist() == [1.0] * len(stopping) + [0.0] * len(cut)


def log_prob(model, tokenizer, prompt, choice):
    given, wanted = tokenizer(prompt)["input_ids"], tokenizer(choice)["input_ids"]
    logits = model(torch.tensor([given + wanted])).logits[0].double().log_softmax(-1)
    return sum(logits[len(given) - 1 + at, token].item() for at, token in enumerate(wanted))


@pytest.mark.parametrize("normalise", ["bytes", "characters", "tokens", None])
def test_multiple_choice_takes_the_most_probable(model, tokenizer, rng, normalise):
    items = [Choice(words(4, rng), tuple(words(rng.randint(1, 4), rng) for _ in range(4)), 2) for _ in range(50)]
    expected = []
    for item in items:
        length = {
            "bytes": lambda text: len(text.encode()),
            "characters": len,
            "tokens": lambda text: len(text.split()),
            None: lambda _: 1,
        }
        values = [log_prob(model, tokenizer, item.prompt, one) / length[normalise](one) for one in item.choices]
        expected.append(float(np.argmax(values) == item.answer))
    made = scores(multiple_choice("quiz", {"validation": items}, normalise=normalise), model, tokenizer)
    assert made[:, 0].tolist() == expected
    assert 0 < made.mean() < 1


def test_bytes_count_utf8(tokenizer):
    """Both choices are one unknown word, equally probable; the one with more bytes has less of it a byte."""
    item = Choice("w0", ("zz", "é€"), 1)  # 2 and 5 bytes
    for normalise, expected in (("bytes", 1.0), ("tokens", 0.5)):
        made = scores(multiple_choice("quiz", {"validation": [item]}, normalise=normalise), tiny_llama(), tokenizer)
        assert made.item() == expected


def test_ties_are_shared(model, tokenizer):
    items = [Choice("w0", ("w5", "w5", "w5"), 1), Choice("w0", ("w5", "w5"), 0)]
    made = scores(multiple_choice("quiz", {"validation": items}), model, tokenizer)
    assert made[:, 0].tolist() == pytest.approx([1 / 3, 1 / 2])


def test_chance_is_that_of_guessing():
    items = {"validation": [Choice("a", ("b", "c"), 0)], "test": [Choice("a", ("b", "c", "d", "e"), 0)] * 3}
    assert multiple_choice("quiz", items).chance == pytest.approx((1 / 2 + 3 / 4) / 4)
    assert multiple_choice("quiz", items, chance=0.1).chance == 0.1
    assert exact_match("facts", {"test": [Item("a", "b")]}).chance == 0.0


@pytest.mark.parametrize(
    "make", [lambda items: exact_match("facts", items), lambda items: multiple_choice("quiz", items)]
)
def test_an_ability_without_items_is_refused(make):
    with pytest.raises(DataError, match="has no test items"):
        make({"test": []})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Choice("a", ("b",), 0), "quiz test item 0: expected at least two choices, got 1"),
        (Choice("a", ("b", "c"), 2), "quiz test item 0: .* from 0 to 1, got 2"),
        (Choice("a", ("b", "c"), -1), "quiz test item 0: .* from 0 to 1, got -1"),
    ],
)
def test_a_choice_that_cannot_be_right_is_refused(item, message):
    with pytest.raises(DataError, match=message):
        multiple_choice("quiz", {"test": [item]})


def test_items_that_do_not_fit_are_left_out_and_counted(tokenizer):
    model, long = tiny_llama(context=8), " ".join(WORDS[:9])
    right = tokenizer.decode(greedy(model, tokenizer, "w1", 1))
    facts = exact_match("facts", {"validation": [Item(long, "w2"), Item("w1", right), Item(long, "w3")]})
    quiz = multiple_choice("quiz", {"validation": [Choice("w1", ("w1", "w2"), 0), Choice(long, ("w1", "w2"), 0)]})
    for ability, expected, note in ((facts, [1.0], "2 of 3"), (quiz, None, "1 of 2")):
        subject = Subject(model, tokenizer, Suite((ability,), (ability.name,), (), {}))
        for _ in range(2):  # said each time, also where the items are remembered
            made = measure(subject, "validation")
            assert made.notes == {ability.key: [f"too long: {note} left out"]}
        assert len(made.scores[ability.key]) == 1
        assert expected is None or made.scores[ability.key][:, 0].tolist() == expected


def test_an_ability_whose_items_are_all_too_long_is_refused(tokenizer):
    items = {"validation": [Item(" ".join(WORDS[:9]), "w2")] * 3}
    with pytest.raises(DataError, match="validation: all 3 items are longer than the model's context of 8 tokens"):
        scores(exact_match("facts", items), tiny_llama(context=8), tokenizer)


@pytest.mark.parametrize("make", [exact_match, multiple_choice])
def test_a_log_likelihood_that_is_no_number_is_refused_with_its_item(make, tokenizer):
    model = tiny_llama()
    model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("w7")] = float("nan")
    items = [Item(one, "w2") for one in ("w1", "w2", "w7")]
    if make is multiple_choice:
        items = [Choice(item.prompt, ("w2", "w3 w4"), 0) for item in items]
    with pytest.raises(RunFailed, match="test item 2: a log-likelihood is not a number"):
        scores(make("task", {"test": items}), model, tokenizer, "test")


def test_a_chat_template_goes_around_the_prompt(model, tokenizer):
    chatty = copy.deepcopy(tokenizer)
    items = {"validation": [Choice(f"w{number}", ("w2", "w3", "w4"), 0) for number in range(30)]}
    with pytest.raises(DataError, match=r"quiz validation item: `chat: true`, and the tokenizer has no chat template"):
        scores(multiple_choice("quiz", items, chat=True), model, tokenizer)
    chatty.chat_template = "{% for m in messages %}w8 w9 {{ m.content }} w10 {% endfor %}"
    made = scores(multiple_choice("quiz", items, chat=True), model, chatty)
    written = [Choice(f"w8 w9 {item.prompt} w10", item.choices, item.answer) for item in items["validation"]]
    assert made.tolist() == scores(multiple_choice("quiz", {"validation": written}), model, tokenizer).tolist()
    assert made.tolist() != scores(multiple_choice("quiz", items), model, tokenizer).tolist()


def test_items_are_encoded_once_per_tokenizer(model, other_model, tokenizer, monkeypatch):
    from untaxed.measuring import abilities

    calls = []
    original = abilities.encode_answers
    monkeypatch.setattr(abilities, "encode_answers", lambda *a, **k: calls.append(1) or original(*a, **k))
    ability = exact_match("facts", {"validation": [Item("w1", "w2")] * 3, "test": [Item("w1", "w2")]})
    for each in (model, other_model, model):
        scores(ability, each, tokenizer)
    assert len(calls) == 1
    scores(ability, model, tokenizer, "test")
    assert len(calls) == 2
