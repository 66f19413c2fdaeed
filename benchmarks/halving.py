"""A study by halving: every setting on few seeds, then each arm at the setting that validation chose, on all seeds.

    python benchmarks/halving.py studies/pocket_all_dpo.yaml --out pocket-all-dpo [--first 2] [--workers 2]

1. The study runs with the first seeds of its spec.
2. Of each arm whose training is swept, one choice of the swept values stays: that of the least tax at 0.95 of plain's
   gain on validation; of an arm that never gets there at 0.8, at 0.5, else that with the highest proxy reward.
3. The study goes on, in the same directory, with these choices and all seeds. Runs that are there already stay.

Sweeps of methods that act after training stay whole: their settings are points of the same runs. What was chosen stands
in DIR/halving.json; it looks at validation alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from untaxed.cli.progress import shown
from untaxed.studies import run_study
from untaxed.studies.arms import plan_arms
from untaxed.studies.spec import load_spec

ORDER = ("q0.95", "q0.8", "q0.5", "ship")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=2)
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    spec = load_spec(given.spec).resolved()
    with shown() as listen:
        few = run_study({**spec, "seeds": spec["seeds"][: given.first]}, given.out, given.workers, listen)
        chosen = list(choices(spec["methods"], few.summary()["arms"]))
        (given.out / "halving.json").write_text(json.dumps({"first": given.first, "chosen": chosen}, indent=1) + "\n")
        all_seeds = run_study({**spec, "methods": [one["written"] for one in chosen]}, given.out, given.workers, listen)
    print(all_seeds.summary()["verdict"])


def choices(methods: Sequence[Any], entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every arm as it is written for the second part, with what was chosen of it and why."""
    for item, arm, entry in zip(methods, plan_arms(methods), entries, strict=True):
        swept = {key for setting in arm.settings if setting.training for key in setting.values}
        if not swept or len({setting.training for setting in arm.settings}) == 1:
            yield {"arm": arm.label, "written": item, "values": {}, "how": "nothing in its training is swept"}
            continue
        choice = next(entry["chosen"][name] for name in ORDER if entry["chosen"].get(name, {}).get("setting"))
        values = next(one["values"] for one in entry["points"] if one["setting"] == choice["setting"])
        values = {key: value for key, value in values.items() if key in swept}
        yield {"arm": arm.label, "written": fixed(item, arm, values), "values": values, "how": choice["how"]}


def fixed(item: Any, arm: Any, values: Mapping[str, Any]) -> Any:
    """An arm with the swept values of its training put in; what is swept of later methods stays."""
    parts = item if isinstance(item, list) else [item]
    training = {method.name for setting in arm.settings for method in setting.training}
    short = [key for part in parts if isinstance(part, dict) for key in itertools.chain(*part.values())]
    done = []
    for part in parts:
        [(name, settings)] = part.items() if isinstance(part, dict) else [(part, {})]
        if name in training:
            found = {key: key if short.count(key) == 1 or key in values else f"{name}.{key}" for key in settings}
            settings = {key: values.get(found[key], value) for key, value in settings.items()}
        done.append({name: settings} if settings else name)
    return done if isinstance(item, list) else done[0]


if __name__ == "__main__":
    main()
