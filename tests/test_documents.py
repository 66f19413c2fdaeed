"""Every Python block of the documents runs, and every command they show exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}", match[2])
        for path in DOCUMENTS
        for text in [path.read_text()]
        for match in BLOCK.finditer(text)
        if match[1] == language
    ]


def test_the_readme_has_blocks_of_every_kind() -> None:
    for language in ("python", "bash", "yaml"):
        assert any(name.startswith("README.md") for name, _ in blocks(language)), language


def test_every_python_block_runs(tmp_path: Path) -> None:
    """All in one process, each in a namespace of its own: importing TRL anew for each would take minutes."""
    found = blocks("python")
    script = "\n".join(
        f"print({name!r}, flush=True)\nexec(compile({code!r}, {name!r}, 'exec'), {{}})" for name, code in found
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count(".md:") >= len(found)


@pytest.mark.parametrize(("name", "code"), blocks("yaml"), ids=lambda value: value if ".md:" in value else "")
def test_every_spec_and_recipe_shown_is_valid(name: str, code: str, tmp_path: Path) -> None:
    """A recipe, a task file, a suite's abilities, or a study."""
    from untaxed.measuring.suite_spec import SuiteSpec
    from untaxed.measuring.tasks import load_task, located_tasks
    from untaxed.merging import read_recipe
    from untaxed.strict_yaml import read_yaml
    from untaxed.studies.spec import load_spec

    path = tmp_path / "spec.yaml"
    path.write_text(code)
    if "merge_method:" in code:
        assert read_recipe(path).parents
    elif "kind:" in code:
        assert load_task("spec.yaml", tmp_path)["name"]
    elif code.startswith("abilities:"):
        (tmp_path / "my_task.yaml").write_text("{name: mine, kind: last_word, rows: {path: mine.jsonl}}")
        assert SuiteSpec.model_validate({"reward": "vader", **located_tasks(read_yaml(path), tmp_path)}).drift
    else:
        assert load_spec(path).methods


@pytest.mark.parametrize(("name", "code"), blocks("bash"), ids=lambda value: value if ".md:" in value else "")
def test_every_command_shown_exists(name: str, code: str) -> None:
    """A line is `make target` or `untaxed command …`; the target or command must be there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    from untaxed.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups}
    for line in filter(None, (line.split("#")[0].strip() for line in code.splitlines())):
        words = line.split()
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "untaxed":
            assert words[1] in commands, line
        else:
            assert words[0] in {"git", "cd", "pip"}, f"{name}: {line}"
