"""Tasks of lm-evaluation-harness through the suite: by a stand-in for it, and by itself where it is installed."""

import copy
import json
import sys
import types

import pytest

from untaxed.errors import DataError, MissingExtra, SpecError, Unsupported
from untaxed.measuring import Choice, Subject, Suite, measure, multiple_choice
from untaxed.measuring.lm_eval_tasks import LmEvalSpec, lm_eval_ability

from .conftest import tiny_llama

DOCUMENTS = [{"q": f"w{n % 40} w{n // 3}", "a": "w1", "b": "w2 w3", "gold": n % 2} for n in range(40)]


def mean(values):
    return sum(values) / len(values)


def get_git_commit_hash():
    """As the harness has it beside `simple_evaluate`: git complains on the terminal where there is no repository."""
    return "asked"


class Task:
    eval_docs = DOCUMENTS

    def aggregation(self):
        return {"acc": mean, "f1": max, "ppl": mean}

    def higher_is_better(self):
        return {"acc": True, "f1": True, "ppl": False}


class Manager:
    all_tasks = ("quiz", "group", "broken")

    def __init__(self, include_path=None):
        self.include_path = include_path

    def load(self, names):
        if names == ["broken"]:
            raise OSError("no hub here")
        return {"tasks": {"quiz": Task(), "other": Task()} if names == ["group"] else {"quiz": Task()}}


@pytest.fixture
def harness(monkeypatch):
    """A stand-in that behaves as lm-eval 0.4.13 does, its bad habits included; returns how it was called."""
    calls = []

    def hflm(**settings):
        settings["tokenizer"].pad_token = "<unk>"
        settings["pretrained"].train(False)
        return settings

    def simple_evaluate(model, tasks, samples, **settings):
        calls.append({"model": model, "samples": samples, "commit": get_git_commit_hash(), **settings})
        rows = []
        for rule in ("strict", "loose"):
            for number in reversed(samples["quiz"]):
                text = DOCUMENTS[number]["q"] + " w1" * (20 * (number == samples["quiz"][0]))
                row = {"doc_id": number, "filter": rule, "arguments": [(text, " w1"), (text, " w2 w3")]}
                rows.append({**row, "acc": float(number % 3 == 0) if rule == "strict" else 1.0})
        return {"samples": {"quiz": rows}}

    modules = {
        "lm_eval": types.SimpleNamespace(simple_evaluate=simple_evaluate),
        "lm_eval.tasks": types.SimpleNamespace(TaskManager=Manager),
        "lm_eval.models.huggingface": types.SimpleNamespace(HFLM=hflm),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def made(tmp_path, **settings):
    return lm_eval_ability(LmEvalSpec(lm_eval="quiz", **settings), tmp_path)


def reading(ability, model, tokenizer, split="test"):
    return measure(Subject(model, tokenizer, Suite((ability,), (ability.name,), (), {})), split)


def test_scores_are_those_of_every_document_in_order(harness, model, tokenizer, tmp_path):
    ability = made(tmp_path, limit=6, num_fewshot=2, batch_size=3, name="q")
    first, again = (reading(ability, model, tokenizer) for _ in range(2))
    call = harness[0]
    numbers = call["samples"]["quiz"]
    assert len(numbers) == 6
    assert first.scores["abilities.q"][:, 0].tolist() == [float(number % 3 == 0) for number in numbers]
    assert first.scores["abilities.q"].tolist() == again.scores["abilities.q"].tolist()
    assert (call["num_fewshot"], call["model"]["batch_size"], call["apply_chat_template"]) == (2, 3, False)
    assert call["model"]["pretrained"] is model  # no copy, no second load
    assert (call["commit"], get_git_commit_hash()) == (None, "asked")
    reading(ability, model, tokenizer, "validation")
    assert not set(harness[-1]["samples"]["quiz"]) & set(numbers)


def test_a_filter_names_its_scores(harness, model, tokenizer, tmp_path):
    strict, loose = (reading(made(tmp_path, metric=f"acc,{rule}"), model, tokenizer) for rule in ("strict", "loose"))
    assert loose.scores["abilities.quiz"].all()
    assert not strict.scores["abilities.quiz"].all()


def test_guessing_among_choices_is_no_ability(harness, tmp_path, monkeypatch):
    monkeypatch.setattr(Task, "OUTPUT_TYPE", "multiple_choice", raising=False)
    choices = {n % 2: ["a", "b"] if n % 2 else ["a", "b", "c", "d"] for n in range(2)}
    monkeypatch.setattr(Task, "doc_to_choice", lambda self, document: choices[document["gold"]], raising=False)
    kept = made(tmp_path).items
    assert made(tmp_path).chance == pytest.approx(0.375, abs=0.001)  # as many of two choices as of four
    assert sum(kept.values()) == 40
    assert made(tmp_path, chance=0.1).chance == 0.1
    monkeypatch.setattr(Task, "aggregation", lambda self: {"likelihood": mean})
    monkeypatch.setattr(Task, "higher_is_better", lambda self: {"likelihood": True})
    assert made(tmp_path).chance == 0


def test_choices_that_cannot_be_counted_are_asked_for(harness, tmp_path, monkeypatch):
    assert made(tmp_path).chance == 0  # no multiple choice
    monkeypatch.setattr(Task, "OUTPUT_TYPE", "multiple_choice", raising=False)
    monkeypatch.setattr(Task, "doc_to_choice", lambda self, document: 1 / 0, raising=False)
    with pytest.raises(SpecError, match=r"cannot be read \(division by zero\); give `chance`"):
        made(tmp_path)


def test_documents_that_it_would_cut_are_left_out_and_counted(harness, tokenizer, tmp_path):
    found = reading(made(tmp_path, limit=5), tiny_llama(context=8), tokenizer)
    assert len(found.scores["abilities.quiz"]) == 4
    assert found.notes == {"abilities.quiz": ["too long: 1 of 5 left out"]}


def test_tokenizer_and_model_are_as_before(harness, tokenizer, tmp_path):
    model, own = tiny_llama().train(), copy.deepcopy(tokenizer)
    reading(made(tmp_path), model, own)
    assert own.pad_token == "<pad>"
    assert model.training


def test_a_chat_template_is_needed_where_it_is_asked_for(harness, model, tokenizer, tmp_path):
    with pytest.raises(DataError, match="quiz: `chat: true`, and the tokenizer has no chat template"):
        reading(made(tmp_path, chat=True), model, tokenizer)


def test_a_sharded_model_is_refused_in_the_loop(harness, tokenizer, tmp_path):
    model = tiny_llama()
    next(model.parameters()).device_mesh = object()
    with pytest.raises(Unsupported, match="a sharded model cannot be read in the loop; measure its saved checkpoints"):
        reading(made(tmp_path), model, tokenizer)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lm_eval": "quizz"}, SpecError, r"unknown task 'quizz' \(did you mean 'quiz'\?\)"),
        ({"lm_eval": "group"}, SpecError, "'group' is a group; name its tasks one by one: other, quiz"),
        ({"lm_eval": "broken"}, DataError, "'broken': its data cannot be read: no hub here"),
        ({"metric": "ac"}, SpecError, r"unknown metric 'ac'; did you mean 'acc'\?"),
        ({"metric": "f1"}, SpecError, "'f1' is no mean over items of which higher is better"),
        ({"metric": "ppl"}, SpecError, "'ppl' is no mean over items of which higher is better"),
    ],
)
def test_what_cannot_be_an_ability_is_refused(harness, settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        lm_eval_ability(LmEvalSpec(**{"lm_eval": "quiz", **settings}), tmp_path)


def test_its_failures_are_one_line(harness, model, tokenizer, tmp_path, monkeypatch):
    def fails(**_):
        raise KeyError("gold\nlabel")

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", fails)
    with pytest.raises(DataError, match="lm_eval 'quiz' failed: KeyError"):
        reading(made(tmp_path), model, tokenizer)


def test_a_missing_extra_names_the_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtra, match=r"pip install 'untaxed\[eval\]'"):
        made(tmp_path)


@pytest.fixture(scope="module")
def real_task(tmp_path_factory):
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (folder / "quiz.yaml").write_text(
        json.dumps(
            {
                "task": "untaxed_quiz",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{q}}",
                "doc_to_choice": "{{[a, b]}}",
                "doc_to_target": "gold",
                "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            }
        )
    )
    return folder


@pytest.mark.filterwarnings("ignore")  # the harness's and its dependencies' own
def test_the_real_harness_agrees_with_our_multiple_choice(real_task, model, tokenizer):
    spec = LmEvalSpec(lm_eval="untaxed_quiz", include=str(real_task), metric="acc_norm")
    ability = lm_eval_ability(spec, real_task)
    theirs = {split: reading(ability, model, tokenizer, split) for split in ("validation", "test")}
    every = [Choice(row["q"], (row["a"], row["b"]), row["gold"]) for row in DOCUMENTS]
    ours = reading(multiple_choice("quiz", {"test": every}, normalise="characters"), model, tokenizer)
    total = sum(float(one.scores["abilities.untaxed_quiz"].sum()) for one in theirs.values())
    assert sum(len(one.scores["abilities.untaxed_quiz"]) for one in theirs.values()) == len(DOCUMENTS)
    assert total == ours.scores["abilities.quiz"].sum()
    assert 0 < total < len(DOCUMENTS)
