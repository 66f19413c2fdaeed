"""A finished study directory that nobody trained: files as a study writes them, numbers from a made-up law.

Reward saturates with steps; proxy keeps rising where gold turns; abilities fall with the distance travelled. Remedies
travel less far for the same reward, each by its own factor.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from untaxed.frontier import Arm, Facts, Point, Setting, choose, summarise

STEPS = range(20, 201, 20)
ABILITIES = {  # name -> (chance, initial, how fast it is forgotten, group)
    "facts": (0.0, 0.97, 0.30, "select"),
    "reading": (1 / 3, 0.82, 0.55, "select"),
    "translation": (0.0, 0.93, 0.25, "select"),
    "arithmetic": (0.0, 0.72, 0.45, "select"),
    "translation_pivot": (0.0, 0.61, 0.50, "report"),
    "arithmetic_hard": (0.0, 0.48, 0.40, "report"),
    "riddles": (0.25, 0.27, 0.10, "report"),
}
MEASURES = [
    {"group": "reward", "name": "proxy", "statistic": "mean", "chance": 0.0, "unit": "reward"},
    {"group": "reward", "name": "gold", "statistic": "mean", "chance": 0.0, "unit": "share positive"},
    *(
        {"group": "abilities", "name": name, "statistic": "mean", "chance": chance, "unit": "share right"}
        for name, (chance, *_) in ABILITIES.items()
    ),
    {"group": "drift", "name": "forward_kl", "statistic": "token_mean", "chance": 0.0, "unit": "nats a token"},
    {"group": "drift", "name": "perplexity", "statistic": "perplexity", "chance": 0.0, "unit": "of human text"},
]
VERSIONS = {"untaxed": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}


@dataclass(frozen=True)
class Remedy:
    """An arm: its sweep, how far it travels for its reward, and what of plain's runs it acts on."""

    name: str
    methods: list
    values: tuple = ({},)
    pace: float = 1.0  # reward gained a step, relative to plain
    damage: float = 1.0  # abilities lost for the way travelled, relative to plain
    after: bool = False
    reset_every: int | None = None


REMEDIES = (
    Remedy("plain", ["plain"]),
    Remedy("early_stopping", ["early_stopping"]),
    Remedy("kl", ["kl"], tuple({"beta": beta} for beta in (0.3, 1.0)), pace=0.8, damage=0.9),
    Remedy("averaging", ["averaging"], tuple({"initial_share": s} for s in (0.1, 0.2, 0.4)), damage=0.6, after=True),
    Remedy("elastic_reset", ["elastic_reset"], pace=1.05, damage=0.75, reset_every=60),
    Remedy(
        "elastic_reset + averaging",
        ["elastic_reset", "averaging"],
        ({"initial_share": 0.2},),
        damage=0.45,
        after=True,
        reset_every=60,
    ),
    Remedy("<script>alert('arm')</script>", ["<b>bold</b>"], pace=0.35),
)


def numbers(way, damage, wobble):
    """Every measure at a distance `way` from initial, 1 being plain's last step."""
    reward = 1 - math.exp(-2.6 * way)
    found = {"reward.proxy": 4.2 * (1 - math.exp(-2.2 * way)) + 0.25 * way - 1.1 + 0.12 * wobble}
    found["reward.gold"] = 0.28 + 0.62 * reward - 0.10 * max(0.0, way - 0.8) + 0.015 * wobble
    for name, (chance, initial, rate, _) in ABILITIES.items():
        kept = math.exp(-rate * damage * way**1.5) + 0.012 * wobble * min(1.0, way)
        found[f"abilities.{name}"] = chance + (initial - chance) * kept
    found["drift.forward_kl"] = 0.9 * damage * way**1.6
    found["drift.perplexity"] = 14.2 * math.exp(0.35 * damage * way)
    return found


def item_scores(key, number, items):
    """Items with a difficulty of their own, the same for all models: right where it is below the number."""
    generator = np.random.default_rng(list(key.encode()))
    ladder = generator.permutation((np.arange(items) + 0.5) / items)
    if key.startswith("abilities."):
        return (ladder < number).astype(float)[:, None]
    if key.startswith("reward."):
        return (number + generator.normal(0, 0.3, items))[:, None]
    tokens = generator.integers(6, 25, items).astype(float)
    each = math.log(number) if key == "drift.perplexity" else number
    return np.stack([tokens * each * (0.5 + ladder), tokens], axis=1)


class Study:
    """Builds the directory run by run."""

    def __init__(self, directory, seeds, items, broken=True):
        self.directory, self.seeds, self.items, self.broken = Path(directory), tuple(range(seeds)), items, broken
        self.settings = {remedy.name: [] for remedy in REMEDIES}
        self.runs = {remedy.name: [] for remedy in REMEDIES}
        self.initial = self.point(0, "initial", 0, numbers(0, 0, 0), splits=("validation", "test"))

    def point(self, seed, name, step, found, *, splits=("validation",), variant=None, phase=None, since=None):
        scores, point = {}, {"name": name, "step": step, "variant": variant, "phase": phase, "steps_since_reset": since}
        for split in ("validation", "test"):
            values = {"reward": {"gold": None}, "abilities": {}, "drift": {}}
            for measure in MEASURES:
                key = f"{measure['group']}.{measure['name']}"
                scores[f"{split}/{key}"] = found_scores = item_scores(key, found[key], self.items)
                total = found_scores.mean(axis=0)
                number = total[0] if measure["statistic"] == "mean" else total[0] / total[1]
                values[measure["group"]][measure["name"]] = float(
                    math.exp(number) if measure["statistic"] == "perplexity" else number
                )
            point[split] = values if split in splits else None
        return {**point, "weights": None, "seed": seed, "scores": scores}

    def train(self, remedy, values, seed):
        """The points of one training: steps, with a fall back towards initial at every reset."""
        generator = np.random.default_rng([seed, len(remedy.name), len(str(values))])
        wobble, pace = generator.normal(), remedy.pace * (1 - 0.3 * values.get("beta", 0))
        points, way = [], 0.0
        for step in STEPS:
            way += 0.1 * pace
            reset = remedy.reset_every and step % remedy.reset_every == 0 and step < STEPS[-1]
            for phase in ("before", "after") if reset else (None,):
                way *= 0.72 if phase == "after" else 1.0
                name = f"step-{step}" + (f"-{phase}" if phase else "")
                noise = wobble + 0.4 * generator.normal()
                points.append(self.point(seed, name, step, numbers(way, remedy.damage, noise), phase=phase, since=0))
        return points

    def variants(self, remedy, seed, values):
        share = values["initial_share"]
        wobble = np.random.default_rng([seed, 7]).normal()
        found = numbers(1 - 0.55 * share, remedy.damage * (1 - share), wobble)
        found["reward.proxy"] -= 0.4 * share
        variant = {"method": "averaging", "methods": [{"method": "averaging", **values}], "of": "last"}
        return [self.point(seed, f"averaging-{share}@last", 200, found, variant=variant)]

    def build(self):
        described, trained = [], {}
        for remedy in REMEDIES:
            if remedy.name == "early_stopping":
                described.append(self.about(remedy, []))
                continue
            entries = []
            for values in remedy.values:
                label = ", ".join(f"{key}={value}" for key, value in values.items())
                base = "elastic_reset" if remedy.reset_every else "plain" if remedy.after else remedy.name
                keys = {
                    seed: f"{base}{'' if remedy.after else label}-{seed}".encode().hex()[:24] + str(seed)
                    for seed in self.seeds
                }
                per_seed = {}
                for seed, key in keys.items():
                    if self.broken and remedy.name == "kl" and values == {"beta": 1.0} and seed == self.seeds[-1]:
                        trained[key] = {"seed": seed, "points": [], "why": "loss is NaN at step 37", "methods": ["kl"]}
                        continue
                    if key not in trained:
                        points = self.train(remedy, values, seed)
                        trained[key] = {"seed": seed, "points": points, "why": None, "methods": remedy.methods}
                    if remedy.after:
                        per_seed[seed] = self.variants(remedy, seed, values)
                        trained[key]["points"] += per_seed[seed]
                    else:
                        per_seed[seed] = trained[key]["points"]
                        self.runs[remedy.name].append(300.0 + 9 * seed)
                self.settings[remedy.name] += list(self.per_step(label, values, per_seed))
                variant = (
                    {"method": "averaging", "methods": [{"method": "averaging", **values}]} if remedy.after else None
                )
                runs = {str(seed): key for seed, key in keys.items()}
                entries.append({"setting": label, "values": values, "variant": variant, "runs": runs})
            described.append(self.about(remedy, entries))
        self.summarise()
        self.write(described, trained)
        return self.directory

    @staticmethod
    def about(remedy, settings):
        flags = {"plain": remedy.name == "plain", "early_stopping": remedy.name == "early_stopping"}
        return {"arm": remedy.name, "methods": remedy.methods, **flags, "settings": settings}

    @staticmethod
    def per_step(label, values, per_seed):
        """Settings of one choice of swept values: one a step, phase or variant."""
        names = [point["name"] for point in next(iter(per_seed.values()), [])]
        for name in names:
            points = {seed: next(p for p in points if p["name"] == name) for seed, points in per_seed.items()}
            first = next(iter(points.values()))
            where = {"of": "last"} if first["variant"] else {"step": first["step"]}
            moment = "of the last step" if first["variant"] else name.replace("-", " ")
            yield (", ".join(part for part in (label, moment) if part), {**values, **where}, points)

    def as_point(self, raw):
        return Point(
            raw["seed"],
            raw["name"],
            raw["step"],
            raw["variant"],
            raw["phase"],
            raw,
            lambda split, key: raw["scores"][f"{split}/{key}"],
        )

    def summarise(self):
        """Two phases, as a study: choose on validation, then give the chosen points their test numbers."""
        facts = Facts(
            MEASURES,
            [name for name, row in ABILITIES.items() if row[3] == "select"],
            [name for name, row in ABILITIES.items() if row[3] == "report"],
            self.as_point(self.initial),
            self.seeds,
        )
        choices = choose(self.arms(), facts)
        for arm, label in choices.to_test:
            for raw in next(points for found, _, points in self.settings[arm] if found == label).values():
                full = self.point(raw["seed"], "", 0, self.back(raw), splits=("validation", "test"))
                raw["test"] = full["test"]
        self.summary = summarise(self.arms(), facts, choices)

    def back(self, raw):
        """The numbers that a point was made from, read from its validation values."""
        return {
            f"{group}.{name}": value
            for group, found in raw["validation"].items()
            for name, value in found.items()
            if value is not None
        }

    def arms(self):
        return [
            Arm(
                remedy.name,
                remedy.methods,
                [
                    Setting(label, values, {seed: self.as_point(raw) for seed, raw in points.items()})
                    for label, values, points in self.settings[remedy.name]
                ],
                plain=remedy.name == "plain",
                early_stopping=remedy.name == "early_stopping",
                seconds=self.runs[remedy.name],
                peak_bytes=1_300_000_000 if self.runs[remedy.name] else None,
            )
            for remedy in REMEDIES
        ]

    def write(self, described, trained):
        spec = {
            "name": "Positive reviews <i>made up</i>",
            "models": {"initial": "pocket"},
            "algorithm": {"name": "dpo", "max_steps": STEPS[-1], "learning_rate": 3e-4, "batch_size": 32},
            "methods": [remedy.methods for remedy in REMEDIES],
            "keep": ["last", "best_proxy"],
            "seeds": list(self.seeds),
        }
        study = {
            "version": 1,
            "spec": spec,
            "identity": {"models": {}, "data": {}, "algorithm": None},
            "versions": VERSIONS,
            "host": {"machine": "x86_64", "cpus": 2, "gpu": None},
            "git": None,
            "started": "2026-01-02T03:04:05+00:00",
            "arms": described,
            "measures": MEASURES,
            "select": self.summary["select"],
            "report": self.summary["report"],
        }
        write_json(self.directory / "study.json", study)
        self.write_points(self.directory / "initial", [self.initial], {"version": 1})
        for key, run in trained.items():
            about = {"version": 1, "key": key, "status": "failed" if run["why"] else "done", "why": run["why"]}
            costs = {"seconds": 341.5, "train_seconds": 300.0, "peak_bytes": 1_300_000_000}
            about |= {"seed": run["seed"], "methods": run["methods"], **costs}
            self.write_points(self.directory / "runs" / key, run["points"], about)
        write_json(self.directory / "summary.json", self.summary)

    def write_points(self, directory, points, about):
        bare = [{key: value for key, value in point.items() if key not in ("scores", "seed")} for point in points]
        scores = {
            f"{point['name']}/{key}": array
            for point in points
            for key, array in point["scores"].items()
            if point[key.split("/")[0]] is not None
        }
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / "scores.npz", **scores)
        write_json(directory / "texts.json", {point["name"]: texts(point) for point in points})
        write_json(directory / "result.json", {**about, "points": bare})


def texts(point):
    prompts = ["the film was", "I went to see <b>it</b> and", "the actors", "a long evening of"] * 2
    step = point["step"]
    ending = (
        "a wonderful , wonderful , warm and clever thing"
        if step > 100
        else "slow in places & <script>alert(1)</script> kind"
    )
    return [
        {"prompt": prompt, "completion": f"{ending} .", "proxy": 0.01 * step - 1, "gold": min(1.0, 0.3 + 0.003 * step)}
        for prompt in prompts
    ]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False))


def fabricate(directory, *, seeds=5, items=120, broken=True):
    """Writes the study and returns its directory."""
    return Study(directory, seeds, items, broken).build()
