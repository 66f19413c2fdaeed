"""Worker processes: the results of one process, a crash that loses one run, interruptions that lose none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from values import values

from untaxed.errors import DataError
from untaxed.studies import Study, run_study
from untaxed.studies.events import Event
from untaxed.studies.results import runs
from untaxed.studies.spec import parse_spec
from untaxed.studies.workers import default_workers

PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def slow_world(world: dict[str, Any]) -> dict[str, Any]:
    measure = {**world["measure"], "reward": {"proxy": "study_rewards:slow"}}
    return {**world, "measure": measure, "seeds": [0, 1], "checkpoint_every": 1}


@pytest.fixture(scope="module")
def unkilled(slow_world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(slow_world, tmp_path_factory.mktemp("studies") / "unkilled", workers=0)


def hear_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would the suite's own processes there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Command:
    """``untaxed study`` in a process of its own."""

    def __init__(self, spec: dict[str, Any], out: Path) -> None:
        path = out.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(spec))
        code = "from untaxed.__main__ import main; main()"
        words = [sys.executable, "-c", code, "study", str(path), "--out", str(out), "--workers", "1"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.out = out
        self.process = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts
        )

    def strike(self, when: Callable[[Path], bool], how: signal.Signals) -> tuple[int, str]:
        """Sends a signal as soon as `when` holds; the exit code and what was said."""
        until = time.monotonic() + PATIENCE_S
        while not when(self.out):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        self.process.send_signal(how)
        said = self.process.communicate(timeout=PATIENCE_S)[1]
        return self.process.returncode, said


def a_run_has_measured(out: Path) -> bool:
    return any(out.glob("runs/*/progress.json"))


def a_run_has_a_state_to_resume_from(out: Path) -> bool:
    return any(out.glob("runs/*/resume/checkpoint-*"))


def test_a_study_interrupted_and_killed_ends_as_an_untouched_one(
    slow_world: dict[str, Any], unkilled: Study, tmp_path: Path
) -> None:
    code, said = Command(slow_world, tmp_path / "out").strike(a_run_has_measured, signal.SIGINT)
    assert code == 130
    assert said.splitlines()[-1] == "interrupted: what was finished is kept; give the same command again to go on"
    assert "Traceback" not in said
    code, _ = Command(slow_world, tmp_path / "out").strike(a_run_has_a_state_to_resume_from, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) < 2
    study = run_study(slow_world, tmp_path / "out", workers=0)
    assert values(study.directory) == values(unkilled.directory)


def test_a_crash_loses_one_run_and_two_workers_do_the_rest(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADLY", str(tmp_path / "order"))
    measure = {**world["measure"], "reward": {"proxy": "study_rewards:deadly"}}
    spec = {**world, "methods": ["plain"], "measure": measure, "seeds": [0, 1, 2]}

    def order(event: Event) -> None:
        if event.kind == "plan" and event.text.endswith("seed 2"):
            (tmp_path / "order").touch()

    study = run_study(spec, tmp_path / "out", 2, order)
    [failed] = study.failed
    assert failed["why"].startswith("the worker died, killed by SIGKILL (out of memory?)")
    assert sorted(run["status"] for run in runs(study.directory)) == ["done", "done", "failed"]
    again = run_study(spec, tmp_path / "out", 1, retry_failed=True)
    assert not again.failed
    alone = run_study(spec, tmp_path / "alone", 0)
    assert values(again.directory) == values(alone.directory)


def test_a_workers_error_is_the_users_own(world: dict[str, Any], tmp_path: Path) -> None:
    measure = {**world["measure"], "reward": {"proxy": "study_rewards:nan"}}
    with pytest.raises(DataError, match="reward 'proxy', row 0: expected a finite number"):
        run_study({**world, "measure": measure}, tmp_path, workers=1)


def test_small_models_get_a_process_a_core(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("untaxed.studies.workers.cores", lambda: 7)
    assert default_workers(parse_spec(world)) == 7
    monkeypatch.setattr("untaxed.studies.workers.SMALL", 1000)
    assert default_workers(parse_spec(world)) == 1


def test_a_worker_ends_when_its_input_does() -> None:
    """So it never outlives a study that was killed."""
    code = "from untaxed.studies.worker import serve; serve()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] in ([{"ready": True}], [])


def test_the_processes_of_a_launcher_make_one_run_together(world: dict[str, Any], tmp_path: Path) -> None:
    spec = {**world, "methods": ["plain"]}
    alone = run_study(spec, tmp_path / "alone", workers=0)
    [run] = runs(alone.directory)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    code = "from untaxed.__main__ import main; main()"
    words = [sys.executable, "-c", code, "align", str(path), "--run", run["key"], "--out", str(tmp_path / "out")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **shared, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    [together] = runs(tmp_path / "out")
    assert together["key"] == run["key"]
    for one, other in zip(run["points"], together["points"]):
        assert one["validation"]["drift"]["perplexity"] == pytest.approx(
            other["validation"]["drift"]["perplexity"], rel=1e-3
        )
