"""Arms made by hand: every item of a measure scores the same, so that no number carries item noise unless asked."""

import numpy as np

from untaxed.frontier import Arm, Facts, Point, Setting

MEASURES = [
    {"group": "reward", "name": "proxy", "statistic": "mean", "chance": 0.0, "unit": "reward"},
    {"group": "reward", "name": "gold", "statistic": "mean", "chance": 0.0, "unit": "reward"},
    {"group": "abilities", "name": "facts", "statistic": "mean", "chance": 0.0, "unit": "share right"},
    {"group": "abilities", "name": "reading", "statistic": "mean", "chance": 0.25, "unit": "share right"},
    {"group": "abilities", "name": "sums", "statistic": "mean", "chance": 0.0, "unit": "share right"},
    {"group": "drift", "name": "forward_kl", "statistic": "token_mean", "chance": 0.0, "unit": "nats a token"},
]
INITIAL = {"proxy": 0.0, "gold": 0.0, "facts": 0.8, "reading": 0.75, "sums": 0.5, "forward_kl": 0.0}
GROUPS = {measure["name"]: measure["group"] for measure in MEASURES}
ITEMS = 40


def split(numbers):
    values = {"reward": {}, "abilities": {}, "drift": {}}
    for name, number in numbers.items():
        values[GROUPS[name]][name] = number
    return values


def scores_of(number, name, noise, generator):
    items = np.full(ITEMS, number) + (generator.normal(0, noise, ITEMS) if noise else 0)
    items += number - items.mean()
    return np.stack([items, np.ones(ITEMS)], axis=1) if name == "forward_kl" else items[:, None]


def point(seed=0, name="step-10", step=10, *, test=True, validation=True, noise=0.0, phase=None, **numbers):
    """A point whose validation and test numbers agree; `test` may be a mapping of numbers that differ there."""
    numbers = {**INITIAL, **numbers}
    at = {"validation": numbers, "test": {**numbers, **test} if isinstance(test, dict) else numbers}
    values = {
        "validation": split(at["validation"]) if validation else None,
        "test": split(at["test"]) if test else None,
    }

    def scores(which, key):
        short = key.split(".")[1]
        return scores_of(at[which][short], short, noise, np.random.default_rng([seed, step, len(short)]))

    return Point(seed, name, step, None, phase, values, scores)


def setting(label, numbers, *, seeds=(0, 1, 2), spread=0.0, shift=None, step=None, values=None, **more):
    """A setting whose seeds differ from the numbers by -spread, 0, +spread, … in abilities and rewards."""
    step = int(label.split()[-1]) if step is None else step
    points = {}
    for rank, seed in enumerate(seeds):
        off = spread * (rank - (len(seeds) - 1) / 2)
        moved = {name: number + off * (shift or {}).get(name, 1) for name, number in numbers.items()}
        points[seed] = point(seed, f"step-{step}", step, **moved, **more)
    return Setting(label, values or {}, points)


def facts(measures=MEASURES, select=("facts", "reading"), report=("sums",), seeds=(0, 1, 2), **initial):
    return Facts(measures, select, report, point(0, "initial", 0, **initial), seeds)


def plain_arm(**more):
    """Three checkpoints: step 30 has the highest proxy, step 20 the highest gold and less tax.

    Retention of facts is a / 0.8, of reading (a - 0.25) / 0.5, so that the taxes on select are
    step 10: 0.8, 0.75 -> 1, 1 -> 0;  step 20: 0.72, 0.70 -> 0.9, 0.9 -> 0.1;  step 30: 0.6, 0.5 -> 0.75, 0.5 -> 0.375.
    """
    return Arm(
        "plain",
        ["plain"],
        [
            setting("step 10", {"proxy": 0.5, "gold": 0.3, "facts": 0.8, "reading": 0.75, "sums": 0.5}, **more),
            setting("step 20", {"proxy": 0.9, "gold": 0.8, "facts": 0.72, "reading": 0.70, "sums": 0.4}, **more),
            setting("step 30", {"proxy": 1.0, "gold": 0.7, "facts": 0.6, "reading": 0.5, "sums": 0.25}, **more),
        ],
        plain=True,
        seconds=(10.0, 11.0, 12.0),
    )


def stopping_arm():
    return Arm("early_stopping", ["early_stopping"], [], early_stopping=True)


def gentle_arm(name="gentle", **more):
    """Step 20: gold 0.68, retention 0.975 and 0.98 -> tax 0.0225; sums 0.45 of 0.5 -> report tax 0.1."""
    numbers = {"proxy": 0.85, "gold": 0.68, "facts": 0.78, "reading": 0.74, "sums": 0.45}
    return Arm(name, [{"gentle": {"strength": 1}}], [setting("step 20", numbers, **more)], seconds=(20.0, 21.0, 22.0))
