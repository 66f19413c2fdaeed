import json

import pytest
import yaml

from untaxed.errors import DataError, SpecError
from untaxed.measuring import Choice, Subject, measure
from untaxed.measuring.ability_spec import AbilitySpec
from untaxed.measuring.generated import Question
from untaxed.measuring.scorers import SCORERS
from untaxed.measuring.suite_items import MAKERS, items_of
from untaxed.measuring.suite_spec import AbilitiesSpec, SuiteSpec, build_suite
from untaxed.measuring.tasks import load_task, shipped
from untaxed.studies.places import located
from untaxed.validation import validated

# A row of every shipped task as its local file and as its hub data set have them, and what the item is made of.
GSM = {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5 eggs\n#### 1,005"}
ROWS = {
    "piqa": [{"goal": "Open it", "sol1": " pull ", "sol2": "push", "label": 1}],
    "arc_easy": [
        {"split": "test", "question": "Why?", "choices": ["a", "b"], "answer": 1},
        {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "hellaswag": [
        {"ctx": "Roof: A man [step] sits. he", "endings": ["falls [x]", "b"], "label": 0},
        {"activity_label": "Roof", "ctx": "A man sits. he", "endings": ["falls", "b"], "label": "0"},
    ],
    "boolq": [{"passage": "Sky is blue.", "question": "is it", "answer": True}],
    "mmlu": [{"question": "2+2?", "choices": ["3", "4", "5", "6"], "answer": 1}],
    "squad": [
        {"lang": "en", "id": "1", "context": "C", "question": "Q?", "answers": [{"text": "308", "answer_start": 1}]},
        {"id": "1", "context": "C", "question": "Q?", "answers": {"text": ["308"], "answer_start": [1]}},
    ],
    "drop": [
        {"passage": "P", "question": "Q?", "answers": ["83"]},
        {"passage": "P", "question": "Q?", "answers_spans": {"spans": ["83"], "types": ["number"]}},
    ],
    "gsm8k": [GSM],
    "svamp": [{"Body": "B.", "Question": "Q?", "Answer": "145.0", "Equation": "( 8 + 1 )"}],
    "fr-en": [{"en": "Hello", "de": "Hallo", "fr": "Bonjour"}],
    "en-de": [{"en": "Hello", "de": "Hallo", "fr": "Bonjour"}],
    "wmt14_fr-en": [{"translation": {"en": "Hello", "fr": "Bonjour"}}],
    "wmt14_en-de": [{"translation": {"en": "Hello", "de": "Hallo"}}],
    "ifeval": [{"prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"n": None}]}],
    "lambada": [{"text": "The cat sat on the mat"}],
}
ROWS["arc_challenge"] = ROWS["arc_easy"]
PROMPTS = {
    "piqa": "Question: Open it\nAnswer:",
    "arc_easy": "Question: Why?\nAnswer:",
    "arc_challenge": "Question: Why?\nAnswer:",
    "hellaswag": "Roof: A man sits. he",
    "boolq": "Sky is blue.\nQuestion: is it?\nAnswer:",
    "mmlu": "2+2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:",
    "squad": "C\n\nQuestion: Q?\nAnswer:",
    "drop": "P\n\nQuestion: Q?\nAnswer:",
    "gsm8k": "Question: How many?\nAnswer:",
    "svamp": "Question: B. Q?\nAnswer:",
    "fr-en": "French: Bonjour\nEnglish:",
    "en-de": "English: Hello\nGerman:",
    "wmt14_fr-en": "French: Bonjour\nEnglish:",
    "wmt14_en-de": "English: Hello\nGerman:",
    "ifeval": "Hi",
    "lambada": "The cat sat on the",
}
RIGHTS = {
    "squad": "308", "drop": "83", "gsm8k": "1,005", "svamp": "145.0", "fr-en": "Hello", "en-de": "Hallo",
    "wmt14_fr-en": "Hello", "wmt14_en-de": "Hallo", "lambada": "mat",
}  # fmt: skip


def of_rows(tmp_path, rows, name, **changes):
    """The shipped task, reading these rows in place of its own, each often enough to reach both splits."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({**row, "number": n}) for n in range(24) for row in rows))
    raw = load_task(name, tmp_path)
    spec = {**raw, "rows": {**raw["rows"], "path": str(file)}, "shots": None, "split_by": "number", **changes}
    return items_of(AbilitySpec.model_validate(spec), tmp_path)["test"]


def test_every_shipped_task_has_a_row_here():
    abilities = {name for name in shipped() if load_task(name, None).get("kind") != "perplexity"}
    assert abilities == set(ROWS) == set(PROMPTS)
    assert set(shipped()) - abilities == {"wikitext"}


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in ROWS.items() for row in rows])
def test_a_shipped_task_reads_its_rows(name, row, tmp_path):
    item = of_rows(tmp_path, [row], name)[0]
    assert item.prompt == PROMPTS[name]
    if isinstance(item, Choice):
        expected = {
            "piqa": ("pull", "push"),
            "hellaswag": ("falls", "b"),
            "boolq": ("no", "yes"),
            "mmlu": tuple("ABCD"),
        }
        assert item.choices == expected.get(name, ("a", "b"))
        assert item.answer == {"hellaswag": 0}.get(name, 1)
    elif isinstance(item, Question) and name == "ifeval":
        assert item.rights == ({"id": "punctuation:no_comma", "kwargs": {}},)
    else:
        assert (item.rights[0] if isinstance(item, Question) else item.answer) == RIGHTS[name]


def test_rows_of_another_split_are_left_out(tmp_path):
    rows = [ROWS["arc_easy"][0], {**ROWS["arc_easy"][0], "split": "train", "question": "Not this?"}]
    assert {item.prompt for item in of_rows(tmp_path, rows, "arc_easy")} == {"Question: Why?\nAnswer:"}


def test_worked_examples_stand_before_every_prompt_and_are_no_items(tmp_path):
    rows = [{"question": f"How many {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    raw = load_task("gsm8k", tmp_path)
    here = {"path": str(file)}
    spec = AbilitySpec.model_validate({**raw, "rows": here, "shots": {"count": 2, "rows": here}})
    made = items_of(spec, tmp_path)
    prompts = [item.prompt for items in made.values() for item in items]
    before = {prompt.rpartition("Question:")[0] for prompt in prompts}
    assert len(before) == 1
    (examples,) = before
    assert examples.count("Question: How many") == 2
    assert examples.endswith("\n\n")
    assert ".\n#### " in examples
    shown = [line for line in examples.splitlines() if line.startswith("Question:")]
    assert len(prompts) == 38
    assert not any(prompt.endswith(f"{line}\nAnswer:") for line in shown for prompt in prompts)
    with pytest.raises(DataError, match="50 worked examples are wanted, and there are 40 rows"):
        items_of(spec.model_copy(update={"shots": spec.shots.model_copy(update={"count": 50})}), tmp_path)


def test_kinds_have_a_maker_and_a_scorer():
    assert set(MAKERS) == set(SCORERS)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    rows = [{"text": f"w{n % 40} w{n // 2 % 40} w{n % 7}"} for n in range(60)]
    (tmp_path / "tasks" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mine = {"name": "mine", "kind": "last_word", "rows": {"path": "rows.jsonl"}, "template": "{text}"}
    (tmp_path / "tasks" / "mine.yaml").write_text(yaml.safe_dump(mine))
    texts = {"name": "human", "kind": "perplexity", "rows": {"path": "rows.jsonl"}, "unit": "word"}
    (tmp_path / "tasks" / "human.yaml").write_text(yaml.safe_dump(texts))
    return tmp_path


def suite(folder, **changes):
    measures = {
        "reward": "vader",
        "abilities": {
            "select": ["tasks/mine.yaml"],
            "report": [{"task": "tasks/mine.yaml", "name": "few", "limit": 3}],
        },
        "drift": [{"perplexity": "tasks/human.yaml"}, {"perplexity": {"task": "tasks/human.yaml", "name": "h2"}}],
    }
    raw = located({"measure": {**measures, **changes}}, folder)
    return validated(SuiteSpec, raw["measure"], "spec.yaml: ", "measure")


def test_task_files_beside_the_spec_are_measured(folder, model, tokenizer):
    spec = suite(folder)
    assert SuiteSpec.model_validate_json(spec.model_dump_json()) == spec  # a study's record says all of it
    built = build_suite(spec, prompts={"validation": ["w1"], "test": ["w1"]}, rewards={}, directory=folder)
    made = measure(Subject(model, tokenizer, built), "test")
    assert [one.key for one in built.measures] == ["abilities.mine", "abilities.few", "drift.human", "drift.h2"]
    assert len(made.scores["abilities.few"]) == 3 < len(made.scores["abilities.mine"])
    assert made.scores["drift.human"][0, 1] == 3


def test_a_plain_name_is_a_shipped_task_and_settings_override():
    entries = ["piqa", {"task": "gsm8k", "limit": 200, "shots": {"count": 8}}, {"task": "svamp", "shots": None}]
    piqa, gsm8k, svamp = AbilitiesSpec.model_validate({"select": entries}).select
    assert (piqa.name, gsm8k.limit, gsm8k.shots.count, svamp.shots) == ("piqa", 200, 8, None)
    assert gsm8k.shots.rows.split == "train"  # the rest of the mapping stays


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("piqua", r"abilities.select.0: unknown task 'piqua'; did you mean 'piqa'\? known: arc_challenge"),
        ("none.yaml", r"none.yaml"),
        ({"task": "piqa", "limitt": 5}, r"unknown key 'limitt' in measure.abilities.select.0; did you mean 'limit'\?"),
        ("wikitext", r"'wikitext': it measures drift; name it there, as {perplexity: wikitext}"),
        ({"task": "piqa", "stop": ["x"]}, "`stop` belongs to kind generated, and 'piqa' is multiple_choice"),
        ({"task": "gsm8k", "metric": "nummber"}, r"unknown metric 'nummber'; did you mean 'number'\?"),
        ({"task": "gsm8k", "metric": None}, "'gsm8k' is generated and needs a `metric`: match, number"),
        ({"task": "gsm8k", "extract": "(["}, r"'\(\[' is no regular expression"),
        ({"task": "gsm8k", "stop": [""]}, "an empty text would stop every answer before it begins"),
        ({"task": "boolq", "choices": ["a", "b"]}, r"`choices` \(columns\) and `options` \(texts\) exclude each other"),
        (
            {"lm_eval": "arc_easy", "limitt": 5},
            r"unknown key 'limitt' in measure.abilities.select.0; did you mean 'limit'",
        ),
    ],
)
def test_mistakes_are_one_line(folder, entry, message):
    with pytest.raises(SpecError, match=message) as caught:
        suite(folder, abilities={"select": [entry]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nkind: last_word\nrows: {path: r.jsonl}\ntemplat: '{text}'",
            "unknown key 'templat'; did you mean 'template'",
        ),
        ("name: x\nkind: perplexity\nrows: {path: r.jsonl}\nunits: word", "unknown key 'units'; did you mean 'unit'"),
        ("name: x\nkind: last_word", "key `rows` is required"),
        ("- piqa", "expected keys and values, got"),
    ],
)
def test_a_wrong_task_file_is_named_with_its_key(folder, text, message):
    file = folder / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load_task("wrong.yaml", folder)
    assert str(file) in str(caught.value)


def test_an_ability_is_no_text_for_perplexity(folder):
    with pytest.raises(SpecError, match="task 'piqa': it is an ability, not texts for perplexity"):
        suite(folder, drift=[{"perplexity": "piqa"}])


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "Q", "answer": "5"}, "the right answer '5' has nothing that answer_pattern"),
        (
            "squad",
            {"id": "1", "context": "C", "question": "Q", "answers": []},
            "answers: expected a list with at least one",
        ),
        ("lambada", {"text": "word"}, "expected at least two words, got 'word'"),
        ("ifeval", {"prompt": "P", "instruction_id_list": ["a"], "kwargs": []}, "of one length, at least 1"),
        ("ifeval", {"prompt": "P", "instruction_id_list": ["a:b"], "kwargs": [{}]}, "unknown instruction 'a:b'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(name, row, message, tmp_path):
    with pytest.raises(DataError, match=f"rows.jsonl, row 1: .*{message}"):
        of_rows(tmp_path, [row], name)
