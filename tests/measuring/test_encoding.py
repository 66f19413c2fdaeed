import pytest

from untaxed.errors import DataError
from untaxed.measuring.batching import Scored
from untaxed.measuring.encoding import Remembered, encode, encode_answers, encode_prompts, join

from .conftest import word_tokenizer


def merging_tokenizer(**names):
    """Byte pairs by hand: a space and a following b become one token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<eos>", "a", "b", "c", " ", " b", ":"])}
    backend = Tokenizer(models.BPE(vocabulary, [(" ", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "<eos>", **names})


def framing_tokenizer():
    """A tokenizer that itself puts bos before and eos behind every text."""
    from tokenizers import processors

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


def answer(tokenizer, prompt, text, eos=False):
    return encode_answers(tokenizer, [(prompt, [text])], eos=eos, where="item")[0][0]


@pytest.mark.parametrize(
    ("prompt", "text", "joint"),
    [("a", "b", "a b"), ("a ", "b", "a b"), ("a\n", "b", "a\nb"), ("a", " b", "a b"), ("", "b", "b")],
)
def test_one_space_is_put_where_none_is(prompt, text, joint):
    assert join(prompt, text) == joint


def test_answer_tokens_are_those_after_the_prompts(tokenizer):
    scored = answer(tokenizer, "w0 w1", "w2 w3")
    assert (scored.tokens, scored.start) == ((4, 5, 6, 7), 2)
    assert answer(tokenizer, "w0 w1", "w2 w3", eos=True).tokens == (4, 5, 6, 7, 2)


def test_a_token_merged_across_the_border_belongs_to_the_answer():
    tokenizer = merging_tokenizer()
    assert tokenizer("a: ")["input_ids"] == [1, 6, 4]
    scored = answer(tokenizer, "a: ", "b")  # "a: b" is a, :, " b"
    assert (scored.tokens, scored.start) == ((1, 6, 5), 2)


def test_many_questions_are_those_one_by_one_in_one_call():
    calls = []

    class Counting:
        """A tokenizer that counts how often it is asked about texts."""

        def __init__(self):
            self.inner = framing_tokenizer()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, texts, **settings):
            calls.extend([texts] if isinstance(texts, list) else [])
            return self.inner(texts, **settings)

    questions = [("w0 w1", ["w2"]), ("", ["w3", "w4 w5"]), ("w6", ["w7 w8", "w9", "w7"])]
    made = encode_answers(Counting(), questions, eos=True, where="item")
    assert len(calls) == 1
    for at, question in enumerate(questions):
        [alone] = encode_answers(framing_tokenizer(), [question], eos=True, where="item")
        assert [(one.tokens, one.start) for one in made[at]] == [(one.tokens, one.start) for one in alone]
        assert {one.where for one in made[at]} == {f"item {at}"}


def test_choices_share_the_shortest_context():
    [[merged, plain]] = encode_answers(merging_tokenizer(), [("a: ", ["b", "c"])], eos=False, where="item")
    assert (merged.tokens, plain.tokens) == ((1, 6, 5), (1, 6, 4, 3))
    assert merged.start == plain.start == 2


def test_special_tokens_of_the_tokenizer_stay_in_front_only():
    tokenizer = framing_tokenizer()
    assert tokenizer("w0")["input_ids"] == [1, 4, 2]
    assert encode(tokenizer, ["w0", "w1 w2"]) == [[1, 4], [1, 5, 6]]
    scored = answer(tokenizer, "w0", "w1")
    assert (scored.tokens, scored.start) == ((1, 4, 5), 2)


def test_eos_written_in_the_text_stays(tokenizer):
    assert encode(tokenizer, ["w0 <eos>"]) == [[4, 2]]


def test_an_empty_prompt_begins_with_bos_or_eos(tokenizer):
    assert encode_prompts(tokenizer, [""]) == [[1]]
    assert encode_prompts(merging_tokenizer(), [""]) == [[0]]
    assert answer(tokenizer, "", "w3") == Scored((1, 7), 1, "item 0")
    with pytest.raises(DataError, match="bos or eos"):
        encode_prompts(merging_tokenizer(eos_token=None), [""])


def test_nothing_to_encode(tokenizer):
    assert encode(tokenizer, []) == []


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_answer_is_refused(tokenizer, text):
    with pytest.raises(DataError, match=r"item 0: the answer .* has no token"):
        answer(tokenizer, "w0", text)


def test_eos_needs_a_tokenizer_that_has_it():
    with pytest.raises(DataError, match=r"item 0: .* no eos token"):
        answer(merging_tokenizer(eos_token=None), "a", "b", eos=True)


def test_remembered_until_the_tokenizer_is_gone():
    memory, calls = Remembered(), []
    kept = word_tokenizer()
    for tokenizer in (kept, kept, word_tokenizer()):
        memory.get(tokenizer, "key", lambda: calls.append(1))
    assert len(calls) == 2
    del tokenizer
    assert len(memory._known) == 1
