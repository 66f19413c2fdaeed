import random

import pytest
import torch

from untaxed.errors import DataError
from untaxed.measuring import batching
from untaxed.measuring.batching import Scored, batches


def random_items(count=60):
    """Items alone, and families of items that go on from one context."""
    rng = random.Random(1)
    items = []
    for length in (rng.randint(2, 12) for _ in range(count)):
        tokens = tuple(rng.randrange(44) for _ in range(length))
        start = rng.randrange(1, length)
        items.append(Scored(tokens, start, ""))
        for _ in range(rng.choice([0, 0, 3])):
            answer = tuple(rng.randrange(44) for _ in range(rng.randint(1, 5)))
            items.append(Scored(tokens[:start] + answer, start, ""))
    return rng.sample(items, len(items))


def places(made):
    """Every scored token with its owner, its position and the tokens that the model reads before it."""
    found = []
    for batch in made:
        for row, column, target, owner in zip(batch.rows, batch.columns, batch.targets, batch.owners, strict=True):
            before = []
            if batch.context is not None:
                parent = batch.context.parents[row]
                before = batch.context.input_ids[parent][batch.context.mask[parent].bool()].tolist()
            read = before + batch.input_ids[row, : column + 1].tolist()
            assert batch.mask[row, : column + 1].all()
            found.append((owner.item(), len(read), target.item(), tuple(read)))
    return sorted(found)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tokens", [8, 40, 10_000])
@pytest.mark.parametrize("entries", [50, 2**24])
def test_every_scored_token_stands_once_after_its_context(monkeypatch, share, tokens, entries):
    monkeypatch.setitem(batching.BATCH_TOKENS, "cpu", tokens)
    monkeypatch.setattr(batching, "LOGIT_ENTRIES", entries)
    items = random_items()
    made = batches(items, vocabulary=10, share=share)
    assert places(made) == sorted(
        (owner, at, item.tokens[at], item.tokens[:at])
        for owner, item in enumerate(items)
        for at in range(item.start, len(item.tokens))
    )
    assert any(batch.context is not None for batch in made) == share
    for batch in made:
        families = 1 if batch.context is None else len(batch.context.input_ids)
        rows = len(batch.input_ids) if batch.context is None else families
        read = batch.input_ids.numel() + (0 if batch.context is None else batch.context.input_ids.numel())
        assert read <= tokens or rows == 1
        assert len(batch.targets) * 10 <= entries or rows == 1


def test_a_shared_context_is_read_once():
    choices = [Scored((5, 6, 7, *answer), 3, "") for answer in [(1, 2), (3, 4, 8), (9,)]]
    (batch,) = batches(choices, vocabulary=10)
    assert batch.context.input_ids.tolist() == [[5, 6]]
    assert batch.context.parents.tolist() == [0, 0, 0]
    assert batch.input_ids.tolist() == [[7, 1, 0], [7, 3, 4], [7, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_items_that_read_the_same_share_a_row():
    choices = [Scored((5, 6, last), 2, "") for last in (7, 8, 9)]
    (batch,) = batches(choices, vocabulary=10)
    assert batch.context is None
    assert batch.input_ids.tolist() == [[5, 6]]
    assert batch.targets.tolist() == [7, 8, 9]
    assert batch.owners.tolist() == [0, 1, 2]


def test_rows_are_padded_on_the_right():
    (batch,) = batches([Scored((1, 2, 3, 4), 1, ""), Scored((1, 2, 3), 1, "")], vocabulary=10)
    assert batch.input_ids.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert batch.mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_an_item_longer_than_the_context_is_named_and_never_cut():
    fits, long = Scored((1,) * 5, 1, "facts test item 0"), Scored((1,) * 6, 1, "facts test item 1")
    assert len(batches([fits], vocabulary=10, limit=4)) == 1  # the last token is never read
    with pytest.raises(DataError, match="facts test item 1 has 5 tokens, more than the model's context of 4"):
        batches([fits, long], vocabulary=10, limit=4)


def test_no_items_no_batches():
    assert batches([], vocabulary=10) == []


def test_tokens_are_integers():
    (batch,) = batches([Scored((1, 2), 1, "")], vocabulary=10)
    assert {batch.input_ids.dtype, batch.rows.dtype, batch.targets.dtype, batch.owners.dtype} == {torch.long}
