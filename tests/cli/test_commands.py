"""The commands: what they print, what they accept, and how they end."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from untaxed.cli import app

COMMANDS = {
    "align": {"--run", "--out", "--set"},
    "demo": {"--out", "--seeds", "--workers", "--json"},
    "doctor": {"--json"},
    "measure": {"--initial", "--suite", "--out", "--set", "--plan", "--json", "--markdown", "--csv", "--card"},
    "merge": {"--plan", "--workers", "--shard-size", "--allow-nonfinite", "--json"},
    "methods": {"--json"},
    "pocket build": {"--out"},
    "report": {"--html", "--json", "--markdown"},
    "study": {"--out", "--set", "--workers", "--plan", "--retry-failed", "--json"},
}


def untaxed(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {key}": value for key, value in inner.items()} if inner else {name: command}
    return found


@pytest.fixture(scope="module")
def studied(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """A spec, the directory of its study, and what the command said."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "spec.yaml").write_text(yaml.safe_dump(world))
    result = untaxed("study", folder / "spec.yaml", "--out", folder / "out", "--workers", 0)
    return folder / "spec.yaml", folder / "out", result


def test_the_flags_are_these_and_no_others() -> None:
    """A new knob is a field of the spec, not a flag."""
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in commands().items()
    }
    assert {name: flags - {"--help"} for name, flags in found.items()} == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = untaxed(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: untaxed {name}" in result.output


def test_no_command_shows_the_help() -> None:
    assert "study" in untaxed("--help").output
    assert untaxed("studdy").exit_code == 2


# --- study, align, report --------------------------------------------------------------------------------------------


def test_study_ends_with_a_table_a_page_and_exit_code_0(studied: tuple[Path, Path, Result]) -> None:
    _, out, result = studied
    assert result.exit_code == 0, result.output
    assert "averaging" in result.stdout
    assert f"report: {out / 'report.html'}" in result.stderr
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert (out / "summary.json").exists()


def test_study_shows_plain_lines_where_there_is_no_terminal(studied: tuple[Path, Path, Result]) -> None:
    lines = studied[2].stderr.splitlines()
    assert "1 run: 1 to do" in lines
    assert any(line.startswith("plain, seed 0: step 2/4  reward 0.") and " tax " in line for line in lines)
    assert any(line.startswith("plain, seed 0: done") for line in lines)
    assert "\x1b" not in studied[2].stderr


def test_set_reaches_the_study(studied: tuple[Path, Path, Result]) -> None:
    spec, out, _ = studied
    result = untaxed("study", spec, "--out", out, "--workers", 0, "--set", "algorithm.max_steps=6")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "algorithm.max_steps was 4, now 6. Arms and seeds may be added to a study; anything else needs another --out"
    )


def test_plan_says_runs_minutes_and_disk_and_starts_nothing(studied: tuple[Path, Path, Result], tmp_path: Path) -> None:
    spec, out, _ = studied
    words = ("study", spec, "--workers", 0, "--plan", "--set", "seeds=[0,1]")
    new = untaxed(*words, "--out", tmp_path / "new")
    assert new.exit_code == 0, new.output
    assert not (tmp_path / "new").exists()
    assert "study     2 runs: 2 to do" in new.stdout
    assert "(2 steps tried out)" in new.stdout
    assert " of weights at most; " in new.stdout
    assert (
        "found     the least that is found in 80 % of cases at level 0.05, by the noise of validation items"
        in new.stdout
    )
    known = json.loads(untaxed(*words, "--out", out, "--json").stdout)
    assert (known["runs"], known["done"], known["basis"]) == (2, 1, "1 run done before")
    assert known["seconds"] > 0
    assert known["disk_bytes"] >= known["kept_bytes"] > 0
    assert len(known["unfinished"]) == 1
    assert known["detectable"]
    assert {row["split"] for row in known["detectable"]} == {"test"}


def test_align_does_one_run_and_the_study_takes_it_as_done(studied: tuple[Path, Path, Result], tmp_path: Path) -> None:
    spec, out, _ = studied
    key = next((out / "runs").iterdir()).name
    result = untaxed("align", spec, "--run", key[:6], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out" / "runs" / key / "result.json")
    assert json.loads(Path(result.stdout.strip()).read_text())["status"] == "done"
    wrong = untaxed("align", spec, "--run", "zzz", "--out", tmp_path / "out")
    assert wrong.exit_code == 2
    assert f"--run zzz: no such run; known: {key} (plain, seed 0)" in wrong.stderr
    so_far = untaxed("report", tmp_path / "out", "--html", tmp_path / "page.html", "--json")
    assert so_far.exit_code == 0, so_far.output
    assert not (tmp_path / "out" / "summary.json").exists(), "a report of an unfinished study writes nothing there"
    rest = untaxed("study", spec, "--out", tmp_path / "out", "--workers", 0)
    assert rest.exit_code == 0
    assert "1 run: 1 done" in rest.stderr


def test_report_prints_json_markdown_or_a_table_and_writes_a_page(
    studied: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    _, out, _ = studied
    summary = json.loads(untaxed("report", out, "--json").stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert len(json.loads(untaxed("report", out, out, "--json").stdout)) == 2
    assert "averaging" in untaxed("report", out).stdout
    assert untaxed("report", out, "--markdown").stdout.count("|") > 10
    page = untaxed("report", out, "--html", tmp_path / "page.html")
    assert page.exit_code == 0
    assert (tmp_path / "page.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["report", "/nowhere"], "error: /nowhere: holds no study (study.json is missing)"),
        (["report", "/a", "/b", "--html", "x.html"], "error: --html is the page of one study; 2 directories are given"),
        (["report", "/a", "--json", "--markdown"], "error: --json and --markdown exclude each other"),
        (["methods", "kll"], "error: unknown method 'kll'; did you mean 'kl'? known: averaging, bema, "),
    ],
)
def test_a_wrong_call_gets_one_line_and_exit_code_2(words: list[str], line: str) -> None:
    result = untaxed(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTAXED_DEBUG", "1")
    assert type(untaxed("report", "/nowhere").exception).__name__ == "StoreError"


# --- methods, doctor, demo, pocket ---------------------------------------------------------------------------------


def test_methods_lists_every_method() -> None:
    table = untaxed("methods").stdout
    cards = {card["name"]: card for card in json.loads(untaxed("methods", "--json").stdout)}
    assert set(cards) >= {"plain", "early_stopping", "kl", "averaging", "elastic_reset"}
    assert all(name in table for name in cards)
    assert table.split()[:3] == ["method", "acts", "needs"]
    row = next(line for line in table.splitlines() if line.startswith("replay "))
    assert row.split()[:3] == ["replay", "loss", "replay"]
    assert cards["nspo"]["needs"] == ["general_prompts"]
    assert cards["elastic_reset"]["acts"] == ["between"]
    assert {"name": "decay", "type": "float", "default": None, "required": True} in cards["reset_to_average"][
        "settings"
    ]


def test_methods_says_what_settings_come_to() -> None:
    """The paper's IMDB setting, of which its own description does not say that 4 % of a cycle survive."""
    told = untaxed("methods", "elastic_reset", "decay=0.995", "reset_every=17").stdout
    assert "n (1 - decay) = 0.085; under steady drift 4.4% of a cycle's displacement is kept" in told
    refused = untaxed("methods", "elastic_reset", "decay")
    assert refused.exit_code == 2
    assert "a setting is given as KEY=VALUE, got 'decay'" in refused.stderr


def test_a_methods_card_says_settings_and_source() -> None:
    card = untaxed("methods", "elastic_reset").stdout
    assert "setting   update_every: int, default 1" in card
    assert "arXiv:2312.07551" in card


def test_doctor_says_what_there_is() -> None:
    found = json.loads(untaxed("doctor", "--json").stdout)
    assert found["versions"]["torch"]
    assert found["host"]["cores"] >= 1
    assert found["hub"] == "switched off by HF_HUB_OFFLINE"
    text = untaxed("doctor")
    assert text.exit_code == 0
    assert "switched off by HF_HUB_OFFLINE" in text.stdout


def test_doctor_does_not_wait_for_a_hub_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from untaxed.cli.doctor import hub_access

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_access().startswith("http://127.0.0.1:9 cannot be reached")


def test_doctor_names_the_line_that_brings_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from untaxed.cli import doctor

    monkeypatch.setitem(doctor.EXTRAS, "train", ("transformers", "no-such-package"))
    assert doctor.missing()[0] == "no-such-package: pip install 'untaxed[train]'"


def test_doctor_looks_for_what_the_extras_bring() -> None:
    from untaxed.cli.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {
        extra: tuple(re.split(r"[^\w-]", package)[0] for package in packages)
        for extra, packages in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert named == EXTRAS


def test_the_demo_is_a_study_of_six_arms() -> None:
    from untaxed.cli.demo import demo_spec
    from untaxed.studies.arms import plan_arms
    from untaxed.studies.spec import parse_spec

    spec = parse_spec(demo_spec(seeds=2))
    assert spec.algorithm is not None
    assert (spec.models.pocket, spec.algorithm.name, spec.seeds) == (True, "dpo", [0, 1])
    assert len(plan_arms(spec.methods)) >= 6


def test_demo_passes_on_where_and_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from untaxed.cli import finish
    from untaxed.studies import Study

    calls: list[Any] = []

    def noted(spec: Any, out: Path, workers: int | None, **about: Any) -> Study:
        calls.append((len(spec.seeds), out, workers, about))
        return Study(out)

    monkeypatch.setattr(finish, "run_and_report", noted)
    assert untaxed("demo", "--out", tmp_path, "--seeds", 3, "--workers", 1, "--json").exit_code == 0
    assert untaxed("demo").exit_code == 0
    assert calls == [(3, tmp_path, 1, {"as_json": True}), (2, Path("untaxed-demo"), None, {"as_json": False})]


def test_pocket_build_passes_on_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from untaxed import pocket

    monkeypatch.setattr(pocket, "build", lambda out, progress: out)
    assert untaxed("pocket", "build", "--out", tmp_path).stdout.strip() == str(tmp_path)
