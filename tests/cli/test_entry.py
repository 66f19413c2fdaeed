"""The first moments of the command: nothing heavy is imported before Ctrl-C is heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import untaxed

ROOT = Path(untaxed.__file__).parents[1]
STRIKE = """
import os, signal, sys

class AtFirstHeavyImport:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtFirstHeavyImport())
"""

PLANNING = """
from untaxed import merging
merging.make_plan = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
"""


def begun(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_during_imports_is_one_line_and_130() -> None:
    """As a module and as the console script; importing torch swallows or prints exceptions where it likes."""
    as_module = "import runpy; runpy.run_module('untaxed', run_name='__main__', alter_sys=True)"
    as_script = "from untaxed.__main__ import main; main()"
    for code in (as_module, as_script):
        done = begun(STRIKE + code, "doctor")
        assert done.returncode == 130, done.stderr
        assert done.stderr == "interrupted: what was finished is kept; give the same command again to go on\n"


def test_ctrl_c_before_a_merge_has_begun_promises_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("merge_method: linear")
    words = ["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    run = "from untaxed.__main__ import main; main()"
    early = "interrupted before anything was begun; give the same command again\n"
    for module, said in {"typer": early, "torch": "interrupted: nothing was written; start again\n"}.items():
        done = begun(STRIKE.replace("torch", module) + run, *words)
        assert (done.returncode, done.stderr) == (130, said)
    planning = STRIKE.partition("class")[0] + PLANNING + run
    assert begun(planning, *words).stderr == "interrupted: nothing was written; start again\n"
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_console_script_is_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"untaxed": "untaxed.__main__:main"}


def test_nothing_heavy_is_imported_before() -> None:
    done = begun(
        "import sys, untaxed.__main__; print([name for name in ('torch', 'typer', 'numpy') if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]"
