"""What may be learned from beside the alignment: of the train split, about select abilities, known to `initial`."""

import doctest
import random
import re

import pytest

from untaxed import pocket
from untaxed.pocket import documents, items, language, rehearsal

SPLITS = ("validation", "test")
STATED = re.compile("the [a-z]+ of [a-z]+ is ")  # raw documents state facts, and so begin as one question in eight does


@pytest.fixture(params=pocket.WORLDS)
def embedded(request):
    return pocket.WORLDS[request.param]


@pytest.fixture(scope="module")
def measured():
    return {q.prompt for name in items.ABILITIES for split in SPLITS for q in items.questions(name, split)}


def test_examples_in_docstrings():
    assert doctest.testmod(rehearsal).failed == 0


def test_groups_hold_the_select_abilities(embedded):
    assert sorted(ability for group in embedded.groups.values() for ability in group) == sorted(embedded.select)
    assert 2 <= len(embedded.groups) <= 4


def test_general_prompts_are_different_and_none_is_measured(embedded, measured):
    prompts = embedded.general_prompts(400)
    assert len(set(prompts)) == 400
    assert all(prompt.endswith(" ") for prompt in prompts)  # words are split at spaces
    assert not {prompt.strip() for prompt in prompts} & measured
    asking = {word for prompt in prompts if (word := prompt.split()[0]) not in language.NAMES}
    assert asking == {
        "the",
        "read",
        "tam",
        "add",
        "multiply",
    }  # not `nol`: pivot is reported
    requests = [prompt for prompt in prompts if prompt.split()[0] in language.NAMES]
    assert bool(requests) == ("lookalike" in embedded.select)


def test_reference_sets_are_different_rows_and_none_is_measured(embedded, measured):
    for group, rows in embedded.reference_sets(200).items():
        assert len({row["prompt"] for row in rows}) == 200, group
        assert not {row["prompt"].strip() for row in rows} & measured, group
        assert all(row["completion"] and not row["completion"].startswith(" ") for row in rows), group


def test_replayed_texts_ask_no_measured_question(embedded, measured):
    suite = embedded.suite(count=8)
    measured = measured | {prompt.strip() for prompts in suite.prompts.values() for prompt in prompts}
    texts = [text for text in embedded.replay(600) if not STATED.match(text)]
    beginnings = {" ".join(text.split()[:end]) for text in texts for end in range(len(text.split()) + 1)}
    assert len(texts) > 500
    assert not beginnings & measured


def test_replayed_texts_are_no_text_of_the_perplexity(embedded):
    rng = random.Random("texts test")
    assert not {documents.raw(rng) for _ in range(200)} & set(embedded.replay(600))


def test_all_of_it_follows_from_the_seed(embedded):
    for draw in (embedded.general_prompts, embedded.reference_sets, embedded.replay):
        assert draw(20) == draw(20)
        assert draw(20) != draw(20, seed=1)
        assert draw(0) in ([], {group: [] for group in embedded.groups})


def test_initial_knows_the_answers(embedded):
    pytest.importorskip("transformers")
    from untaxed.checkpoints import load_model, load_tokenizer
    from untaxed.measuring import measure
    from untaxed.measuring.abilities import Item, exact_match
    from untaxed.measuring.subject import Subject
    from untaxed.measuring.suite import Suite

    rows = embedded.reference_sets(100)
    measures = [
        exact_match(group, {"test": [Item(row["prompt"].strip(), row["completion"]) for row in asked]})
        for group, asked in rows.items()
    ]
    suite = Suite(tuple(measures), tuple(rows), (), dict.fromkeys(SPLITS, ("x",)))
    path = embedded.initial_path()
    found = measure(Subject(load_model(path), load_tokenizer(path), suite), "test", ["abilities"]).values["abilities"]
    for group, least in {"knowledge": 0.9, "translation": 0.9, "reading": 0.6, "arithmetic": 0.5}.items():
        assert found[group] > least, group
