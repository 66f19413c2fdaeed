"""Models that do not read the same items."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

from rich.console import Console

from untaxed.comparison import measure
from untaxed.reporting import measured, measured_page


def test_a_model_with_a_shorter_context_is_paired_where_all_items_fit(models: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(models / "near", short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    rows = [
        {"prompt": f"w{n} " + "w1 " * (12 * (n % 3 == 0)), "choices": ["w2", "w3 w4"], "answer": 0} for n in range(27)
    ]
    for name, chosen in (("long", rows), ("brief", [row for row in rows if len(row["prompt"]) < 9])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    ability = "{{name: {0}, kind: multiple_choice, rows: {{path: {0}.jsonl}}}}"
    (tmp_path / "suite.yaml").write_text(
        f"abilities: {{select: [{ability.format('long')}, {ability.format('brief')}]}}\n"
    )
    said: list[str] = []
    summary = measure([short], models / "initial", tmp_path / "suite.yaml", tmp_path / "out", say=said.append).summary
    abilities = summary["models"][0]["abilities"]
    why = "other items fit into its context than into initial's, so that they cannot be paired"
    assert abilities["long"]["why"] == why
    assert abilities["brief"]["items"] == 18
    assert any(line.startswith("short: long, test: too long: ") for line in said)
    left = summary["models"][0]["notes"]["abilities.long"]
    found = [re.fullmatch(r"too long: (\d+) of (\d+) left out", *left[split]) for split in ("validation", "test")]
    assert [sum(int(match[place]) for match in found if match) for place in (1, 2)] == [9, 27]
    assert summary["initial"]["notes"] == {}
    said.clear()
    again = measure([short], models / "initial", tmp_path / "suite.yaml", tmp_path / "out", say=said.append).summary
    assert not any("too long" in line for line in said)  # nothing was measured
    assert again["models"][0]["notes"] == summary["models"][0]["notes"]
    stream = io.StringIO()
    measured.terminal(again, Console(file=stream, width=200))
    for shown in (stream.getvalue(), measured.markdown(again), measured_page.html(again)):
        assert all(f"long ({split}), short: {left[split][0]}." in shown for split in left)
    of_test = measured.markdown({**again, "items": "test"})
    assert ("long (test)" in of_test, "long (validation)" in of_test) == (True, False)
