import copy

import pytest
import torch

from untaxed.errors import DataError, RunFailed, Unsupported
from untaxed.measuring import Subject, Suite, generating, measure
from untaxed.measuring.generated import Question, generated
from untaxed.measuring.generating import Decoding, cut, greedy

from .conftest import tiny_llama, words
from .test_sampling import greedy as decoded


def alone(model, tokenizer, prompt, count):
    tokens = decoded(model, tokenizer, prompt, count)
    return tokenizer.decode(tokens, skip_special_tokens=True)


def make_model(kind):
    if kind == "llama":
        return tiny_llama()
    from . import test_forward

    torch.manual_seed(0)
    return getattr(test_forward, kind)().eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("shared", ["", "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 "])
def test_greedy_equals_every_prompt_alone(kind, shared, tokenizer, rng, monkeypatch):
    """Ragged prompts, with and without a shared beginning, in several batches; some end early, some never."""
    model = make_model(kind)
    prompts = [shared + words(rng.randint(1, 9), rng) for _ in range(24)]
    ids = [tokenizer(one)["input_ids"] for one in prompts]
    monkeypatch.setitem(generating.CACHE_TOKENS, "cpu", 8 * (20 + 12))
    with torch.no_grad():
        made = greedy(model, tokenizer, ids, Decoding(12), where="item")
    assert made == [alone(model, tokenizer, one, 12) for one in prompts]


def test_rows_that_are_done_leave_the_batch(tokenizer, monkeypatch):
    model = tiny_llama()
    ids = [tokenizer(f"w{number}")["input_ids"] for number in range(16)]
    long = greedy(model, tokenizer, ids, Decoding(20), where="item")
    stop = long[0].split()[1]
    seen = []
    original = generating.read
    monkeypatch.setattr(
        generating, "read", lambda m, rows, *a, **k: seen.append(len(rows)) or original(m, rows, *a, **k)
    )
    made = greedy(model, tokenizer, ids, Decoding(20, (stop,)), where="item")
    assert made == [cut(one, (stop,)) for one in long]
    assert seen[0] == 16
    assert seen[-1] <= 8


def test_an_answer_ends_before_the_first_stop_text():
    assert cut("42\n\nQuestion: who", ("Question:", "\n\n")) == "42"
    assert cut("42", ("x",)) == "42"
    assert cut("\n\n42\nand", ("\n",)) == "\n\n42"


def test_white_space_before_an_answer_does_not_end_it(monkeypatch):
    """Token by token, with stops looked for in the last few tokens only."""
    texts = ["\n", "\n", "4", "2", "\n", "and"]

    class Letters:
        def decode(self, tokens, **_):
            return "".join(texts[at] for at in tokens)

    writer = generating._Writer(None, Letters(), Decoding(9, ("\n",)), "", [])
    assert [writer._stopped(list(range(n))) for n in range(1, 7)] == [False, False, False, False, True, True]


def test_the_models_own_end_of_text_tokens_count(tokenizer):
    model = tiny_llama()
    model.generation_config.eos_token_id = [5, 2]
    assert generating.ends(model, tokenizer) == {2, 5}


def test_a_model_without_a_cache_is_refused(tokenizer):
    model = tiny_llama()
    original = model.forward

    def forward(**inputs):
        output = original(**inputs)
        output.past_key_values = None
        return output

    model.forward = forward
    with pytest.raises(Unsupported, match="keeps no key-value cache"):
        greedy(model, tokenizer, [[4, 5]], Decoding(2), where="item")


def reading(model, tokenizer, questions, **settings):
    settings = {"metric": "match", "decoding": Decoding(6), **settings}
    one = generated("task", {"test": questions}, **settings)
    subject = Subject(model, tokenizer, Suite((one,), ("task",), (), {}))
    made = measure(subject, "test")
    return made.scores["abilities.task"], made.notes.get("abilities.task", [])


def test_answers_are_compared_with_what_is_right(model, tokenizer):
    written = alone(model, tokenizer, "w3 w1", 6)
    questions = [Question("w3 w1", ("nothing", written)), Question("w3 w1", ("w1",))]
    scores, notes = reading(model, tokenizer, questions)
    assert scores.tolist() == [[1.0], [0.0]]
    assert notes == []


def test_empty_and_unfound_answers_score_0_and_are_counted(model, tokenizer):
    first = alone(model, tokenizer, "w5 w1", 1)
    assert first
    settings = {"decoding": Decoding(6, (first,)), "metric": "em"}  # "the" is normalised to nothing, too
    scores, notes = reading(model, tokenizer, [Question("w5 w1", ("the",))], **settings)
    assert (scores.tolist(), notes) == ([[0.0]], ["empty answers: 1 of 1, scored 0"])
    scores, notes = reading(model, tokenizer, [Question("w5 w1", ("the",))], extract="zebra")
    assert (scores.tolist(), notes) == ([[0.0]], ["no answer found in the text: 1 of 1, scored 0"])


@pytest.mark.parametrize("metric", ["match", "number", "em", "f1", "drop_em", "drop_f1", "bleu", "chrf"])
def test_an_empty_answer_is_worth_nothing(model, tokenizer, metric):
    first = alone(model, tokenizer, "w3 w1", 1)
    one = generated("task", {"test": [Question("w3 w1", ("12 w1",))]}, metric=metric, decoding=Decoding(6, (first,)))
    made = measure(Subject(model, tokenizer, Suite((one,), ("task",), (), {})), "test")
    assert made.values["abilities"]["task"] == 0.0


def test_prompts_without_room_for_the_answer_are_left_out(tokenizer):
    model = tiny_llama(context=10)
    questions = [Question("w1 " * length, ("x",)) for length in (3, 5, 4, 9)]
    scores, notes = reading(model, tokenizer, questions)
    assert (len(scores), notes) == (2, ["too long: 2 of 4 left out"])
    with pytest.raises(DataError, match="task test: all 1 items are longer than the model's context of 10"):
        reading(model, tokenizer, questions[3:])


def test_a_logit_that_is_no_number_is_refused_with_its_item(tokenizer):
    model = tiny_llama()
    model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("w7")] = float("nan")
    with pytest.raises(RunFailed, match="task test item 1: a logit is not a number"):
        reading(model, tokenizer, [Question("w1", ("x",)), Question("w7 w2 w3", ("x",))])


def test_two_metrics_of_one_task_write_once(model, tokenizer, monkeypatch):
    from untaxed.measuring import subject as module

    calls = []
    original = module.greedy
    monkeypatch.setattr(module, "greedy", lambda *a, **k: calls.append(1) or original(*a, **k))
    both = [
        generated(name, {"test": [Question("w1", ("w2",))]}, metric=name, decoding=Decoding(3)) for name in ("f1", "em")
    ]
    measure(Subject(model, tokenizer, Suite(tuple(both), ("f1",), ("em",), {})), "test")
    assert len(calls) == 1


def test_prompts_through_a_chat_template(model, tokenizer):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}w8 {{ m.content }} w10{% endfor %}"
    rights = [alone(model, tokenizer, f"w8 w{number} w10", 6) for number in range(12)]
    questions = [Question(f"w{number}", (right,)) for number, right in enumerate(rights) if right]
    assert len(questions) > 2
    assert reading(model, chatty, questions, chat=True)[0].all()
    with pytest.raises(DataError, match="task test: `chat: true`, and the tokenizer has no chat template"):
        reading(model, tokenizer, questions, chat=True)
