"""Models that do not read the same items."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from untaxed.comparison import measure


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
    found = summary["models"][0]["abilities"]
    assert found["long"]["why"] == "other items fit into its context than into initial's, so that they cannot be paired"
    assert found["brief"]["items"] == 18
    assert any(line.startswith("short: long, test: too long: ") for line in said)
