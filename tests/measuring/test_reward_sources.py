import json
import random
import sys

import pytest

from untaxed.errors import DataError, MissingExtra, SpecError
from untaxed.measuring import reward_sources
from untaxed.measuring.reward_sources import TextClassifier, Vader, imported, source_file
from untaxed.rows import RowsSource

GOOD = ["a", "fine", "warm", "film", "that", "delights"]
BAD = ["a", "dull", "cold", "mess", "that", "bores"]


@pytest.fixture
def module(tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "LIMIT = 3\ndef brevity(prompts, completions):\n    return [-len(text) for text in completions]\n"
    )
    yield tmp_path
    sys.modules.pop("my_rewards", None)


def test_a_module_of_many_names_is_not_listed(tmp_path):
    with pytest.raises(SpecError, match=r"os has no function 'nofun'; \d+ are known$"):
        imported("os:nofun", tmp_path)


def test_a_function_beside_the_spec(module):
    before = list(sys.path)
    assert imported("my_rewards:brevity", module)(["p"], ["four"]) == [-4]
    assert sys.path == before


def test_the_given_folder_comes_before_the_working_directory_and_before_what_is_in_memory(tmp_path, monkeypatch):
    for name in ("spec", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text(f"def which(prompts, completions):\n    return {name!r}\n")
    monkeypatch.chdir(tmp_path / "here")
    assert imported("json:which", tmp_path / "spec")([], []) == "spec"
    assert imported("json:which", tmp_path)([], []) == "here"
    assert imported(f"{tmp_path}/spec/json:which", tmp_path)([], []) == "spec"
    assert sys.modules["json"] is json


def test_a_changed_file_is_read_again(module):
    file = module / "my_rewards.py"
    assert imported("my_rewards:brevity", module)(["p"], ["four"]) == [-4]
    file.write_text(file.read_text().replace("-len", "+len"))  # the same size, and within the same second
    assert imported("my_rewards:brevity", module)(["p"], ["four"]) == [4]
    assert not list(module.glob("__pycache__"))


def test_a_module_in_a_package_has_its_neighbours(tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "scale.py").write_text("SCALE = 3\n")
    text = (
        "from .scale import SCALE\ndef size(prompts, completions):\n    return [SCALE * len(t) for t in completions]\n"
    )
    (package / "rewards.py").write_text(text)
    assert imported("my_package.rewards:size", tmp_path)(["p"], ["ab"]) == [6]
    assert source_file("my_package.rewards:size", tmp_path) == package / "rewards.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_file_of_a_reward_is_found_without_running_it(tmp_path):
    (tmp_path / "explosive.py").write_text("1 / 0\n")
    assert source_file("explosive:f", tmp_path) == tmp_path / "explosive.py"
    assert source_file("json.decoder:f", tmp_path).name == "decoder.py"
    assert source_file("sys:f", tmp_path) is None  # built in
    assert source_file("no_such.module:f", tmp_path) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder/my_rewards:f", "cannot import my_rewards: /no/such/folder has no my_rewards.py"),
        ("my_rewards:brevty", r"my_rewards has no function 'brevty'; did you mean 'brevity'\?"),
        ("my_rewards:LIMIT", "has no function 'LIMIT'"),
        ("no_such_module:f", "cannot import no_such_module: No module named 'no_such_module'"),
        ("brevity", "expected module:function, vader or text_classifier"),
    ],
)
def test_what_cannot_be_imported_is_named(module, path, message):
    with pytest.raises(SpecError, match=message):
        imported(path, module)


def test_a_module_that_fails_is_named(tmp_path):
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    with pytest.raises(SpecError, match="cannot import broken_rewards: division by zero"):
        imported("broken_rewards:f", tmp_path)
    assert "broken_rewards" not in sys.modules
    (tmp_path / "leaving_rewards.py").write_text("raise SystemExit('bye')\n")
    with pytest.raises(SpecError, match="cannot import leaving_rewards: bye"):
        imported("leaving_rewards:f", tmp_path)


def test_vader_lies_between_zero_and_one():
    pytest.importorskip("vaderSentiment", reason="needs the extra [smollm2]")
    awful, neutral, great = Vader()(["great"] * 3, ["It is horrible and awful.", "", "It is great, I love it!"])
    assert 0 <= awful < neutral == 0.5 < great <= 1


def labelled(path, count=200):
    rng = random.Random(0)
    rows = [
        {"text": " ".join(rng.choice(GOOD if label else BAD) for _ in range(8)) + f" {at}", "label": label}
        for at, label in enumerate([1, 0] * (count // 2))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return RowsSource(path=str(path))


def test_classifier_learns_and_is_the_same_every_time(tmp_path):
    pytest.importorskip("sklearn", reason="needs the extra [smollm2]")
    source = labelled(tmp_path / "reviews.jsonl")
    first, again = TextClassifier(source), TextClassifier(source)
    texts = ["fine warm film", "dull cold mess", ""]
    good, bad, nothing = first([""] * 3, texts)
    assert bad < 0.1 < nothing < 0.9 < good
    assert again([""] * 3, texts) == [good, bad, nothing]
    assert first.accuracy > 0.9
    assert TextClassifier(source, positive=0)([""], texts[:1])[0] == pytest.approx(1 - good)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"text": "a b", "label": 1}] * 30, {}, "rows with label 1 and rows with another"),
        ([{"text": "a b", "label": 0}, {"text": "c"}], {}, r"row 2: no value in column 'label'"),
        ([{"text": "a b", "stars": 5}], {"label": "star"}, r"no value in column 'star'; did you mean 'stars'\?"),
    ],
)
def test_rows_that_cannot_be_learned_from(tmp_path, rows, settings, message):
    pytest.importorskip("sklearn", reason="needs the extra [smollm2]")
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message):
        TextClassifier(RowsSource(path=str(path)), **settings)


def test_a_missing_package_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.delitem(sys.modules, "vaderSentiment.vaderSentiment", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'untaxed\[smollm2\]'"):
        reward_sources.Vader()
