import json

import pytest
from pydantic import ValidationError

from untaxed.errors import DataError
from untaxed.measuring import Subject, measure
from untaxed.measuring.abilities import Choice, Item
from untaxed.measuring.suite_items import AbilitySpec, items_of
from untaxed.measuring.suite_spec import SuiteSpec, build_rewards, build_suite


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"path": path.name}


def ability(**changes):
    return {"name": "facts", "kind": "exact_match", "rows": {"path": "facts.jsonl"}, **changes}


def spec(**changes):
    return {"reward": "vader", "abilities": {"select": [ability()]}, **changes}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "facts.jsonl", [{"prompt": f"w{n} w1", "answer": "w2", "country": f"c{n}"} for n in range(40)])
    quiz = [{"goal": f"w{n}", "sol1": "w1", "sol2": "w2 w3", "label": n % 2} for n in range(40)]
    write(tmp_path / "quiz.jsonl", quiz)
    write(tmp_path / "texts.jsonl", [{"text": f"w{n} w1 w2 w3 w4"} for n in range(30)])
    (tmp_path / "suite_rewards.py").write_text("def count(prompts, completions):\n    return [1.0] * len(prompts)\n")
    return tmp_path


FULL = {
    "reward": {"proxy": "suite_rewards:count", "gold": "suite_rewards:count"},
    "abilities": {
        "select": [ability(limit=7)],
        "report": [
            {
                "name": "quiz",
                "kind": "multiple_choice",
                "rows": {"path": "quiz.jsonl", "columns": {"prompt": "goal", "answer": "label"}},
                "choices": ["sol1", "sol2"],
                "normalise": "none",
            }
        ],
    },
    "drift": ["forward_kl", "length", {"perplexity": {"name": "human", "rows": {"path": "texts.jsonl"}, "limit": 5}}],
    "every": 10,
    "samples": 4,
    "max_new_tokens": 3,
    "seed": 9,
}


def test_a_whole_suite_from_files_is_measured(folder, model, tokenizer):
    parsed = SuiteSpec.model_validate(FULL)
    rewards = build_rewards(parsed, directory=folder)
    prompts = {split: [f"w{n}" for n in range(20)] for split in ("validation", "test")}
    suite = build_suite(parsed, prompts=prompts, rewards=rewards, directory=folder)
    keys = [one.key for one in suite.measures]
    assert keys == [
        "reward.proxy",
        "reward.gold",
        "abilities.facts",
        "abilities.quiz",
        "drift.forward_kl",
        "drift.length",
        "drift.human",
    ]
    assert (suite.select, suite.report) == (("facts",), ("quiz",))
    assert (suite.sampling.max_new_tokens, suite.sampling.seed) == (3, 9)
    scores = measure(Subject(model, tokenizer, suite), "validation").scores
    assert list(scores) == keys
    assert len(scores["abilities.facts"]) == 7
    assert len(scores["reward.gold"]) == 4
    assert len(scores["drift.human"]) == 5


def test_defaults_and_a_single_reward():
    parsed = SuiteSpec.model_validate(spec())
    assert (parsed.reward.proxy, parsed.reward.gold) == ("vader", None)
    assert (parsed.drift, parsed.every) == (["forward_kl"], 20)
    single = SuiteSpec.model_validate(spec(reward={"text_classifier": {"rows": {"path": "reviews.jsonl"}}}))
    assert single.reward.proxy.text_classifier.label == "label"


def test_general_prompts_are_halved_counted_once_and_bounded(folder, model, tokenizer):
    rows = [{"prompt": f"w{n} w{n % 3}"} for n in range(27)]
    write(folder / "general.jsonl", rows + rows)
    drift = {"drift": ["forward_kl", "general_forward_kl"], "general_prompts": {"path": "general.jsonl"}}
    prompts = {split: ["w1", "w2"] for split in ("validation", "test")}

    def built(**changes):
        parsed = SuiteSpec.model_validate(spec(**drift, max_new_tokens=3, **changes))
        return build_suite(parsed, prompts=prompts, rewards={}, directory=folder)

    general = built().general
    assert sorted(general["validation"] + general["test"]) == sorted(row["prompt"] for row in rows)
    assert min(map(len, general.values())) > 5
    some = built(samples=4).general
    assert all(len(some[split]) == 4 and set(some[split]) < set(general[split]) for split in some)
    scores = measure(Subject(model, tokenizer, built(samples=4)), "test", ["drift"]).scores
    assert {key: len(rows) for key, rows in scores.items()} == {"drift.forward_kl": 2, "drift.general_forward_kl": 4}
    write(folder / "general.jsonl", [*rows, {"prompt": " "}])
    with pytest.raises(DataError, match=r"general.jsonl, row 28: expected a text in the field 'prompt'"):
        built()


def test_a_suite_without_general_prompts_reads_as_it_did(folder):
    parsed = SuiteSpec.model_validate(FULL)
    assert "general_prompts" not in parsed.model_dump(mode="json")
    prompts = {split: ["w1"] for split in ("validation", "test")}
    assert build_suite(parsed, prompts=prompts, rewards={}, directory=folder).general == {}


def test_a_spec_survives_json():
    parsed = SuiteSpec.model_validate(FULL)
    assert SuiteSpec.model_validate_json(parsed.model_dump_json()) == parsed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evry": 5}, "evry"),
        ({"every": 0}, "every"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"drift": ["forward_k"]}, "forward_k"),
        ({"drift": ["general_length"]}, "general_length needs `general_prompts`, rows with a field `prompt`"),
        (
            {"general_prompts": {"path": "x"}},
            "`general_prompts` is read by no entry of `drift`; add general_forward_kl",
        ),
        ({"general_prompts": {"pat": "x"}, "drift": ["general_length"]}, "pat"),
        ({"reward": "vadr"}, "expected `vader`, `module:function` or `text_classifier"),
        ({"reward": "module:"}, "expected `vader`"),
        ({"abilities": {"select": []}}, "select"),
        ({"abilities": {"select": [ability(), ability()]}}, "abilities: the name 'facts' stands 2 times"),
        ({"abilities": {"select": [ability(name="a b")]}}, "name"),
        ({"abilities": {"select": [ability(kind="exact")]}}, "kind"),
        ({"drift": ["length", {"perplexity": {"name": "length", "rows": {"path": "x"}}}]}, "drift: the name 'length'"),
    ],
)
def test_mistakes_in_a_spec(changes, message):
    with pytest.raises(ValidationError, match=message):
        SuiteSpec.model_validate(spec(**changes))


def items(folder, **changes):
    return items_of(AbilitySpec.model_validate(ability(**changes)), folder)


def test_every_row_is_in_one_split_and_stays_there(folder):
    made = items(folder)
    names = {split: {item.prompt for item in rows} for split, rows in made.items()}
    assert not names["validation"] & names["test"]
    assert len(names["validation"] | names["test"]) == 40
    rows = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    write(folder / "facts.jsonl", rows[::-1])
    assert {split: {item.prompt for item in rows} for split, rows in items(folder).items()} == names


def test_template_and_the_field_that_divides(folder):
    made = items(
        folder, template="The capital of {country} is", split_by="country", limit=3, rows={"path": "facts.jsonl"}
    )
    assert made["validation"][0].prompt.startswith("The capital of c")
    assert all(len(rows) == 3 for rows in made.values())
    with pytest.raises(DataError, match="none fell to"):
        items(folder, split_by="answer")  # the same in every row


@pytest.fixture
def one_row(folder):
    """Items of a file with the same row often enough to reach both splits; the first validation item is returned."""

    def first(row, **changes):
        rows = [{**row, "id": number} for number in range(30)]
        made = items(folder, rows=write(folder / "rows.jsonl", rows), split_by="id", **changes)
        return made["validation"][0]

    return first


@pytest.mark.parametrize(
    ("row", "position"),
    [
        ({"choices": ["x", "y"], "answer": 1}, 1),
        ({"choices": ["x", "y"], "answer": "1"}, 1),
        ({"choices": ["x", "y"], "answer": "y"}, 1),
        ({"choices": ["x", "y"], "answer": "B", "labels": ["A", "B"]}, 1),
        ({"choices": ["x", "y"], "answer": "1", "labels": ["1", "2"]}, 0),
        ({"choices": [" x ", 7], "answer": "7"}, 1),
    ],
)
def test_ways_to_name_the_right_choice(one_row, row, position):
    made = one_row({"prompt": "w1", **row}, kind="multiple_choice")
    assert isinstance(made, Choice)
    assert made.answer == position
    assert made.choices == tuple(str(choice).strip() for choice in row["choices"])


def test_exact_match_takes_numbers_as_text(one_row):
    assert one_row({"prompt": "1 + 1 =", "answer": 2}) == Item("1 + 1 =", "2")


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"prompt": "p"}, {}, "row 1: no value in column 'answer'"),
        ({"prompt": "p", "answer": None}, {}, "row 1: no value in column 'answer'"),
        ({"question": "p", "answer": "a"}, {}, "row 1: template: no column 'prompt'"),
        ({"prompt": "p", "answer": "a"}, {"template": "{promt}"}, r"no column 'promt'; did you mean 'prompt'\?"),
        ({"prompt": "p", "answer": "a"}, {"split_by": "none"}, "no value in column 'none'"),
        (
            {"prompt": "p", "answer": 5, "choices": ["x", "y"]},
            {"kind": "multiple_choice"},
            "row 1: answer: expected a position",
        ),
        ({"prompt": "p", "answer": 0, "choices": "xy"}, {"kind": "multiple_choice"}, "row 1: choices: expected a list"),
        ({"prompt": "p", "answer": 0}, {"kind": "multiple_choice"}, "no value in column 'choices'"),
        (
            {"prompt": "p", "answer": 0, "a": 1},
            {"kind": "multiple_choice", "choices": ["a", "b"]},
            "no value in column 'b'",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(folder, row, changes, message):
    rows = write(folder / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message) as caught:
        items(folder, rows=rows, **changes)
    assert str(folder / "rows.jsonl") in str(caught.value)


def test_a_file_too_small_for_two_splits(folder):
    with pytest.raises(DataError, match="too few rows, none fell to"):
        items(folder, rows=write(folder / "rows.jsonl", [{"prompt": "p", "answer": "a"}]))


def test_an_empty_text_is_named(folder):
    parsed = SuiteSpec.model_validate(
        spec(drift=[{"perplexity": {"rows": write(folder / "rows.jsonl", [{"text": "a b"}, {"text": " "}])}}])
    )
    prompts = {"validation": ["w1"], "test": ["w1"]}
    with pytest.raises(DataError, match="row 2: the text is empty"):
        build_suite(parsed, prompts=prompts, rewards={}, directory=folder)


def test_prompts_are_needed(folder):
    with pytest.raises(DataError, match="no test prompts"):
        build_suite(
            SuiteSpec.model_validate(spec()), prompts={"validation": ["w1"], "test": []}, rewards={}, directory=folder
        )
