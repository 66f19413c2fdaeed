"""Specs: defaults, changes from the command line, paths, and one clear line for everything that is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from untaxed.errors import SpecError
from untaxed.strict_yaml import parse_yaml
from untaxed.studies.sources import WORLDS
from untaxed.studies.spec import PocketMeasure, StudySpec, load_spec, parse_spec

POCKET: dict[str, Any] = {"name": "p", "models": {"initial": "pocket"}, "methods": ["plain"]}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("world", WORLDS)
def test_an_embedded_world_needs_nothing_but_name_models_and_methods(world: str) -> None:
    spec = parse_spec({**POCKET, "models": {"initial": world}})
    assert spec.algorithm is not None
    assert (spec.algorithm.name, spec.seeds, spec.keep) == ("dpo", [0], ["last", "best_proxy", "all"])


def test_given_checkpoints_need_no_algorithm() -> None:
    spec = parse_spec({**POCKET, "models": {"initial": "pocket", "aligned": ["pocket"]}})
    assert spec.algorithm is None


def test_a_resolved_spec_reads_back_as_itself(world: dict[str, Any]) -> None:
    for raw in (POCKET, world):
        spec = parse_spec(raw)
        assert parse_spec(spec.resolved()) == spec


def test_every_committed_study_is_a_spec() -> None:
    folder = Path(__file__).parents[2] / "studies"
    assert [load_spec(path).name for path in sorted(folder.glob("*.yaml"))]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"metods": ["plain"]}, r"unknown key 'metods'; did you mean 'methods'\? known: algorithm, "),
        ({"models": {"inital": "pocket"}}, "unknown key 'inital' in models; did you mean 'initial'"),
        ({"models": {}}, "key `models.initial` is required"),
        ({"algorithm": {"name": "dop"}}, "algorithm.name: unknown algorithm 'dop'; did you mean 'dpo'"),
        ({"algorithm": {"max_steps": 0}}, "algorithm.max_steps: should be greater than or equal to 1, got 0"),
        ({"algorithm": {"learning_rate": "fast"}}, "algorithm.learning_rate: should be a valid number.*, got 'fast'"),
        ({"algorithm": {"beta": float("inf")}}, "algorithm.beta: should be a finite number, got inf"),
        ({"measure": {"evry": 20}}, "unknown key 'evry' in measure; did you mean 'every'"),
        ({"measure": {"every": -1}}, "measure.every: should be greater than or equal to 1, got -1"),
        ({"measure": 20}, "measure: expected keys and values, got 20"),
        ({"keep": ["lats"]}, r"keep.0: unknown name 'lats'; did you mean 'last'\? known: all, best_proxy, last"),
        ({"keep": []}, "keep: is empty; name `last`, `best_proxy` or both: methods"),
        (
            {"models": {"initial": [1]}},
            r"models.initial: should be a folder, a hub id, pocket, pocket_safety, or a recipe .*, got \[1\]",
        ),
        (
            {"models": {"initial": {"gguf": {"pth": "x"}}}},
            "unknown key 'pth' in models.initial.gguf; did you mean 'path'",
        ),
        ({"keep": ["all"]}, "keep: name `last`, `best_proxy` or both"),
        ({"seeds": [1, 1]}, "seeds: seeds must differ"),
        ({"seeds": [True]}, "seeds.0: should be a number, got a truth value"),
        ({"algorithm": {"max_steps": True}}, "algorithm.max_steps: should be a number, got a truth value"),
        ({"measure": {"every": True}}, "measure.every: should be a number, got a truth value"),
        ({"models": None, "measure": {"items": 5}}, "models: expected keys and values, got None"),
        ({"models": [], "measure": {"items": 5}}, r"models: expected keys and values, got \[\]"),
        ({"models": 3, "measure": {"items": 5}}, "models: expected keys and values, got 3"),
        (
            {"models": {"initial": "poket"}, "measure": {"items": 5}},
            "models.initial: measure.items belongs to .* 'poket'",
        ),
        (
            {"models": {"initial": "pocket", "pretrained": "/nosuch"}},
            "models: the embedded world brings its own `pretr",
        ),
        ({"models": {"initial": "x", "aligned": ["a", "./a"]}}, "models.aligned: a stands 2 times; name every"),
        ({"models": {"initial": "x", "aligned": "a"}}, r"models.aligned: should be a list of checkpoints, .*: \[a\]"),
        ({"methods": [{"kl": {"beta": "x"}}]}, "methods.0.kl.beta: should be a valid number"),
        ({"seeds": []}, "seeds: is empty; give at least 1"),
        ({"methods": []}, "methods: is empty; give at least 1"),
        ({"models": {"initial": "pocket", "aligned": ["pocket"]}, "algorithm": {"name": "dpo"}}, "exclude each other"),
        ({"models": {"initial": "x"}, "measure": {"reward": {"proxy": "vader"}}}, "measure.abilities"),
        ({"data": {"prompts": {"path": "x.jsonl"}}}, "data: the embedded world brings its own data"),
        ({"name": ""}, "name: is empty; give at least 1"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError, match=line) as caught:
        parse_spec({**POCKET, **change}, where="study.yaml: ")
    assert str(caught.value).startswith("study.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"drift": ["forwrd_kl"]},
            r"measure.drift.0: unknown name 'forwrd_kl'; did you mean 'forward_kl'\? known: dist",
        ),
        ({"drift": ["perplexty"]}, r"measure.drift.0: unknown name 'perplexty'; did you mean '{perplexity: …}'"),
        (
            {"drift": [{"perplexity": {"row": 1}}]},
            "unknown key 'row' in measure.drift.0.perplexity; did you mean 'rows'",
        ),
        ({"drift": [{"perplexity": {}}]}, "key `measure.drift.0.perplexity.rows` is required"),
        ({"reward": "veder"}, "measure.reward.*: expected `vader`, `module:function`"),
        ({"reward": {"prxy": "vader"}}, "unknown key 'prxy' in measure.reward; did you mean 'proxy'"),
        (
            {"reward": {"text_classifier": {"rows": {"path": "x"}, "positiv": 1}}},
            "unknown key 'positiv' in measure.reward.text_classifier; did you mean 'positive'",
        ),
        ({"abilities": {"select": []}}, "measure.abilities.select: is empty; give at least 1"),
    ],
)
def test_the_key_of_a_measure_is_the_one_that_stands_in_the_file(
    world: dict[str, Any], change: dict[str, Any], line: str
) -> None:
    with pytest.raises(SpecError, match=line):
        parse_spec({**world, "measure": {**world["measure"], **change}})


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{prompt.__class__}", r"'?{prompt.__class__} is no plain name of a field"),
        ("{prompt[0]}", r"{prompt\[0\]} is no plain name"),
        ("{prompt!r}", "{prompt!r} is no plain name"),
        ("{prompt:>9999999999}", "{prompt:>9999999999} is no plain name"),
        ("{prompt:{width}}", "{prompt:{width}} is no plain name"),
        ("{}", "{} is no plain name"),
        ("{0}", r"{0\} is no plain name"),
        ("{", "'{' cannot be filled in: .*; a brace itself is written twice"),
    ],
)
def test_templates_hold_plain_names_of_fields(world: dict[str, Any], template: str, line: str) -> None:
    ability = {**world["measure"]["abilities"]["select"][0], "template": template}
    with pytest.raises(SpecError, match=rf"^measure\.abilities\.select\.0\.template: {line}"):
        parse_spec({**world, "measure": {**world["measure"], "abilities": {"select": [ability]}}})
    models = {"pretrained": "x", "initial": {"sft": {"rows": {"path": "x.jsonl"}, "template": template}}}
    with pytest.raises(SpecError, match=rf"^models\.initial\.sft\.template: {line}"):
        parse_spec({**world, "models": models})
    with pytest.raises(SpecError, match=r"^data\.prompts\.template: .* has no {prompt}, where the prompt goes"):
        parse_spec({**world, "data": {"prompts": {"path": "x.jsonl", "template": template}}})


def test_a_study_that_is_not_pocket_says_what_it_needs() -> None:
    with pytest.raises(SpecError, match="key `measure` is required"):
        parse_spec({**POCKET, "models": {"initial": "some/model"}, "algorithm": {"name": "dpo"}})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: a\nname: b\n", "line 2: key 'name' stands twice"),
        ("name: [a\n", "line 2: expected"),
        ("", "expected keys and values, got nothing"),
        ("- plain\n", r"expected keys and values, got \['plain'\]"),
        ("name: p\na: &x [1, *x]\n", "line 2: an alias stands inside what it names"),
        ("name: p\na: &x {b: {c: *x}}\n", "line 2: an alias stands inside what it names"),
        ("a: " + "[" * 3000 + "\n", "is nested too deeply"),
        ("a: 2024-99-99\n", "not YAML: month must be in 1..12"),
        ('name: p\na: "x\\ud800"\n', r"line 2: '\\ud800' is half of a character that was cut in two"),
        ("name: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    ],
)
def test_yaml_is_read_strictly(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=line):
        load_spec(written(tmp_path / "study.yaml", text))


def test_only_true_and_false_are_truth_values(tmp_path: Path) -> None:
    text = "name: on\nmodels: {initial: pocket}\nalgorithm: {name: dpo}\nmethods: [plain, {kl_loss: {on: own}}]\n"
    spec = load_spec(written(tmp_path / "study.yaml", text))
    assert (spec.name, spec.methods[1]) == ("on", {"kl_loss": {"on": "own"}})
    assert parse_yaml("[yes, No, off, true, False]", where="here") == ["yes", "No", "off", True, False]


def test_aliases_that_stand_for_too_much_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["z0: &a0 [" + ", ".join("x" * 9) + "]"]
    lines += [f"z{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 40)]
    began = time.perf_counter()
    for depth, values in ((8, "490,329,066 values"), (40, "at least 1,000,000,000,000 values")):
        with pytest.raises(SpecError, match=rf"stands for {values} once its aliases are put in; at most 100,000 are"):
            load_spec(written(tmp_path / "laugh.yaml", "name: x\n" + "\n".join(lines[: depth + 1])))
    assert time.perf_counter() - began < 1
    assert load_spec(written(tmp_path / "few.yaml", yaml.safe_dump(POCKET) + "seeds: &s [1, 2]\nkeep: [last]\n")).seeds


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not a text file in UTF-8"):
        load_spec(tmp_path / "bytes.yaml")


@pytest.fixture
def pocket_file(tmp_path: Path) -> Path:
    return written(tmp_path / "study.yaml", yaml.safe_dump({**POCKET, "methods": ["plain", {"kl": {"beta": 0.3}}]}))


def test_set_changes_keys_and_steps_into_lists(pocket_file: Path) -> None:
    sets = ["algorithm.learning_rate=1e-6", "seeds=[0, 1]", "methods.1.kl.beta={sweep: [1, 2]}", "measure.items=5"]
    spec = load_spec(pocket_file, sets)
    assert spec.algorithm is not None
    assert spec.algorithm.learning_rate == 1e-6
    assert spec.seeds == [0, 1]
    assert spec.methods[1] == {"kl": {"beta": {"sweep": [1, 2]}}}


def test_set_makes_what_the_file_does_not_have(pocket_file: Path) -> None:
    assert load_spec(pocket_file, ["seeds.0=1"]).seeds == [1]
    assert load_spec(pocket_file, ["methods.0=kl", "methods.0.kl.beta=2"]).methods[0] == {"kl": {"beta": 2}}
    assert load_spec(pocket_file, ["checkpoint_every=null"]).checkpoint_every is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("seeds", "--set seeds: expected KEY=VALUE"),
        ("methods.7=plain", "expected a number from 0 to 1 in place of '7'"),
        ("name.first=x", "nothing lies below 'p'"),
        ("algorithm.max_steps=", "--set algorithm.max_steps=: expected KEY=VALUE"),
        ("methods.0.plain.x=1", "study.yaml: methods.0.plain has no setting 'x'; it takes no settings"),
        ("seeds.1=1", "study.yaml: seeds: should be a valid list"),
        ("seeds=&x [*x]", "an alias stands inside what it names"),
        ("seeds=[1", "--set seeds=.*line 1"),
    ],
)
def test_a_set_that_cannot_be_is_named(change: str, line: str, pocket_file: Path) -> None:
    with pytest.raises(SpecError, match=line):
        load_spec(pocket_file, [change])


def test_paths_start_at_the_spec_and_hub_names_stay(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    raw = {**world, "models": {"initial": "model", "pretrained": "owner/name"}}
    raw["data"] = {"prompts": {"path": "rows/prompts.jsonl"}}
    spec = load_spec(written(tmp_path / "study.yaml", yaml.safe_dump(raw)))
    assert spec.models.initial == str(tmp_path / "model")
    assert spec.models.pretrained == "owner/name"
    assert spec.data.prompts is not None
    assert spec.data.prompts.path == str(tmp_path / "rows" / "prompts.jsonl")


def test_a_reward_beside_the_spec_or_in_the_working_directory_is_found_from_everywhere(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, here, elsewhere = (tmp_path / name for name in ("spec", "here", "elsewhere"))
    for folder, names in ((spec, ["both", "package/inner"]), (here, ["both", "cwd_only"]), (elsewhere, [])):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.py").touch()
        folder.mkdir(exist_ok=True)

    def read(**reward: Any) -> Any:
        raw = {**world, "measure": {**world["measure"], "reward": reward}}
        made = load_spec(written(spec / "study.yaml", yaml.safe_dump(raw)))
        assert not isinstance(made.measure, PocketMeasure)
        return made.measure.reward.proxy, made.measure.reward.gold

    monkeypatch.chdir(here)
    assert read(proxy="both:f", gold="cwd_only:f") == (f"{spec}/both:f", f"{here}/cwd_only:f")
    monkeypatch.chdir(elsewhere)
    assert read(proxy="both:f", gold="cwd_only:f") == (f"{spec}/both:f", "cwd_only:f")
    assert read(proxy="package.inner:f", gold="../here/both:f") == (f"{spec}/package.inner:f", f"{here}/both:f")
    assert read(proxy="vader", gold=None) == ("vader", None)


def test_variables_are_put_in_or_left_for_the_reader(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_HERE", "/data")
    monkeypatch.delenv("NOT_SET", raising=False)
    paths = {"${SET_HERE}/a.jsonl": "/data/a.jsonl", "${NOT_SET:-/else}/a": "/else/a", "${NOT_SET}/a": "${NOT_SET}/a"}
    for given, expected in paths.items():
        raw = {**world, "data": {"prompts": {"path": given, "hub": None}}}
        spec: StudySpec = load_spec(written(tmp_path / "study.yaml", yaml.safe_dump(raw)))
        assert spec.data.prompts is not None
        assert spec.data.prompts.path == expected
