"""The words, the split and the items of the pocket world."""

import doctest
import random

import pytest

from untaxed.pocket import documents, items, language, sentiment

SPLITS = ("train", "validation", "test")


def test_examples_in_docstrings():
    for module in (language, sentiment):
        assert doctest.testmod(module).failed == 0


def test_no_word_stands_for_two_things():
    invented = (*language.NAMES, *language.NOL.values(), *language.TAM.values())
    known = (*language.FUNCTION_WORDS, *language.NOUNS, *language.VERBS, *language.ADJECTIVES, *language.BELONGINGS)
    assert len(set(invented)) == len(invented)
    assert not set(invented) & {*known, *language.ASPECTS}


def test_saved_tokenizer_agrees_with_the_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    language.save_tokenizer(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "review the house of " + language.NAMES[0] + " : the look was superb . i give 9 ."
    assert tokenizer(text)["input_ids"] == language.encode(text)
    assert tokenizer.decode(language.encode(text)) == text
    assert tokenizer(text + language.END)["input_ids"] == [*language.encode(text), tokenizer.eos_token_id]
    assert tokenizer.unk_token_id not in language.encode(text)


@pytest.mark.parametrize("name", [name for name in items.ABILITIES if name not in items.KNOWLEDGE])
def test_items_of_an_ability_are_disjoint_between_splits(name):
    asked = {split: {question.prompt for question in items.questions(name, split, 300)} for split in SPLITS}
    assert [len(found) for found in asked.values()] == [300] * 3
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]


@pytest.mark.parametrize("name", items.KNOWLEDGE)
def test_facts_are_asked_in_two_disjoint_halves(name):
    asked = items.knowledge(name)
    assert {len(asked["validation"]), len(asked["test"])} == {1024}
    assert not {q.prompt for q in asked["validation"]} & {q.prompt for q in asked["test"]}


def test_review_prompts_are_disjoint_and_enough():
    prompts = [set(items.review_prompts(split)) for split in SPLITS]
    assert all(len(found) >= 256 for found in prompts)
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_training_documents_hold_no_measured_question():
    measured = {
        question.prompt
        for name in items.ABILITIES
        if name not in items.KNOWLEDGE
        for split in ("validation", "test")
        for question in items.questions(name, split, 1000)
    }
    rng = random.Random(0)
    asked = {kind(rng)[0] for kind, _ in documents.SFT for _ in range(200)}
    assert not asked & measured


def test_questions_are_the_same_at_every_call():
    assert items.questions("reading", "test", 20) == items.questions("reading", "test", 20)


def test_batches_close_documents_and_learn_only_answers():
    ids, labels = documents.batch(documents.SFT, 8, random.Random(0))
    learned = labels != documents.IGNORED
    assert ids.shape == labels.shape == (8, documents.ROW)
    assert (ids[learned] == labels[learned]).all()
    assert 0 < learned.mean() < 0.7
