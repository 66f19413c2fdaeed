"""What a study lends to the methods that act after training, so that they can learn and search; and what they found.

runs/<key>/made/<methods>@<checkpoint>-<its content>/<n>-<method>/found.json   what the nth method found, once it has
                                                                 /evaluations.jsonl   what a search has measured so far

A folder is named after the content of the checkpoint and of those merged with it: what was trained again and differs
is searched anew.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import frontier
from ..checkpoints import fingerprint
from ..errors import RunFailed, SpecError
from ..measuring import Sampling, measure, undisturbed
from ..measuring.rewards import rewards_of
from ..measuring.sampling import sample
from ..method import Method
from ..sites import Making, Responses, Weights
from .arms import Chain, RunPlan, variant_name
from .bench import Bench
from .points import Point
from .store import Store, read_json, read_scores, write_json

Found = dict[str, Any]
Source = tuple[str, Point]  # a run's key and one of its checkpoints
LONG = ("steps", "settings")  # stays in the run's folder


@torch.no_grad()  # learning asks for gradients itself
def make(
    bench: Bench,
    store: Store,
    run: RunPlan,
    made_of: Sequence[Source],
    after: Chain,
    model: Any,
    members: Callable[[int], list[Weights]],
    tell: Callable[[str], None] = lambda _: None,
) -> list[Found]:
    """Makes a variant of a checkpoint in place.

    Args:
        made_of: The checkpoint, and those of the run's members.
        after: The methods that act on it, one after the other; one that acts as the model writes is left out.
        model: The checkpoint, loaded.
        members: Gives the weights of the other trainings as they are before the method at a place.
        tell: Takes a few words on how far the work is.
    Returns:
        What the methods found, of those that search or learn: their record without its steps, ``method``, and about
        how many ``measurements`` it cost.
    """
    folder, judge, all_found = _folder(store, run, made_of, after), Judge(bench, store, model), list[Found]()
    for number, method in enumerate(method for method in after if "after" in method.acts):
        keeper = Keeper(folder / f"{number}-{method.name}")
        making = Making(
            initial=dict(bench.initial.model.named_parameters()),
            aligned=dict(model.named_parameters()),
            model=model,
            seed=run.seed,
            respond=lambda count: respond(bench, model, count, run.seed),
            judge=judge,
            once=keeper.once,
            folder=keeper.folder,
            tell=tell,
        )
        if method.trainings == 1:
            weights = method.make(making)
        else:
            weights = method.merge(making.initial, [making.aligned, *members(number)])
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        about = {"method": method.name, "measurements": method.measurements}
        all_found += [{**about, **{k: v for k, v in one.items() if k not in LONG}} for one in keeper.given]
    return all_found


def _folder(store: Store, run: RunPlan, made_of: Sequence[Source], after: Chain) -> Path:
    folder = store.run(run.key) / "made" / variant_name(after, made_of[0][1]["name"])
    if all(type(method).make is Method.make for method in after):
        return folder  # nothing is kept there, and a large checkpoint takes long to read
    contents = [fingerprint(store.run(key) / point["weights"]) for key, point in made_of]
    return folder.with_name(f"{folder.name}-{hashlib.sha256(' '.join(contents).encode()).hexdigest()[:12]}")


class Keeper:
    """Keeps what a method found for one variant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given: list[Found] = []

    def once(self, find: Callable[[], Found]) -> Found:
        """What was found before, or is found now."""
        path = self.folder / "found.json"
        if not path.exists():
            write_json(path, find())
        self.given = [read_json(path)]  # as it will be read the next time, also now
        return self.given[0]


def respond(bench: Bench, model: Any, count: int, seed: int) -> Responses:
    """Draws a model's responses to training prompts, each prompt as often as any other, with their proxy rewards."""
    if bench.task.reward is None or not bench.task.prompts:
        raise SpecError("data.prompts: a method learns from the model's own responses; prompts and a reward are needed")
    prompts = _prompts(bench.task.prompts, count, seed)
    suite = bench.suite.sampling
    sampling = Sampling(suite.max_new_tokens, suite.temperature, suite.batch_size, seed)
    with undisturbed(model, bench.tokenizer):
        drawn = sample(model, bench.tokenizer, prompts, sampling)
    rewards = rewards_of("proxy", bench.task.reward, drawn.prompts, drawn.texts)
    responses = [tuple(row[:length]) for row, length in zip(drawn.token_ids.tolist(), drawn.mask.sum(1).tolist())]
    return Responses(drawn.prompt_ids, responses, rewards.tolist())


def _prompts(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """So many prompts in a random order; all of them before one comes again."""
    generator, chosen = random.Random(f"{seed} responses"), list[str]()
    while len(chosen) < count:
        chosen += generator.sample(list(prompts), min(len(prompts), count - len(chosen)))
    return chosen


class Judge:
    """Measures a model on validation by what may be chosen on: proxy reward, and tax on the select abilities."""

    def __init__(self, bench: Bench, store: Store, model: Any) -> None:
        self.bench, self.store, self.model = bench, store, model
        self._abilities: dict[str, tuple[float, float]] | None = None
        self._initial_reward: float | None = None

    def __call__(self) -> dict[str, Any]:
        """``reward``, ``tax``, None where undefined with ``why``; ``abilities`` and ``initial_reward``."""
        abilities = self._start()
        names = ["reward.proxy", *(f"abilities.{name}" for name in abilities)]
        try:
            values = measure(self.bench.subject(self.model), "validation", names).values
        except RunFailed as error:
            return {"reward": None, "tax": None, "initial_reward": self._initial_reward, "why": str(error)}
        return {
            "reward": values["reward"]["proxy"],
            "initial_reward": self._initial_reward,
            "abilities": values["abilities"],
            **_tax(values["abilities"], abilities),
        }

    def _start(self) -> dict[str, tuple[float, float]]:
        """Of the select abilities that count: what initial has, and chance."""
        if self._abilities is None:
            result = self.store.initial_result()
            assert result is not None  # it is measured before any run
            [point] = result["points"]
            facts = self.bench.facts()
            scores = read_scores(self.store.initial / "scores.npz")
            out = frontier.left_out(_facts(facts, point, scores))
            chance = {one["name"]: one["chance"] for one in facts["measures"] if one["group"] == "abilities"}
            start = point["validation"]["abilities"]
            self._initial_reward = point["validation"]["reward"].get("proxy")
            self._abilities = {name: (start[name], chance[name]) for name in facts["select"] if name not in out}
        return self._abilities


def _tax(values: Mapping[str, float], abilities: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    if not abilities:
        return {"tax": None, "why": "no select ability of the initial model is clearly above chance"}
    kept = [frontier.retention(values[name], *start) for name, start in abilities.items()]
    return {"tax": float(1 - np.mean(kept))}


def _facts(facts: Mapping[str, Any], point: Point, scores: Mapping[str, NDArray[np.float64]]) -> frontier.Facts:
    """The study's facts as far as they say which abilities of the initial model count."""
    initial = frontier.Point(
        seed=0,
        name=point["name"],
        step=0,
        variant=None,
        phase=None,
        values={"validation": point["validation"], "test": point["test"]},
        scores=lambda split, key: scores[f"{point['name']}/{split}/{key}"],
    )
    return frontier.Facts(facts["measures"], facts["select"], facts["report"], initial, seeds=())
