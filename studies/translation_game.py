"""The pivot-translation game: does English between two translators stay English while they learn to get German right?

    python studies/translation_game.py --data DIR --out DIR --seeds 3

A sender (French to English) and a receiver (English to German) are pretrained on one part of the data. On the other
part they play: the sender samples English for a French sentence, the receiver has to produce the German one, and the
sender is rewarded (REINFORCE) by how likely the receiver finds it. Nobody sees the English original, so it may drift:
*drift* is the loss of BLEU-EN of greedy French to English, *task* is BLEU-DE through both hops. The arms are plain
REINFORCE, a KL penalty to the pretrained sender at two strengths, resets to the pretrained sender, and Elastic Reset.

DIR holds two gzipped JSON-lines files, pairs of the Tatoeba project with a split a pair that all translations of one
English sentence share (CC BY 2.0; www.manythings.org/anki and tatoeba.org):

    tatoeba_en_fr.jsonl.gz    {"split": "train" | "valid" | "test", "en": "…", "fr": "…"}
    tatoeba_en_de.jsonl.gz    {"split": "train" | "valid" | "test", "en": "…", "de": "…"}

in DIR itself or in folders named like them. Every other English sentence of the train split that has both languages is
the game's; pretraining takes all the rest. A finished run is a file under ``--out`` and is not made again; the table is
printed and stands in ``summary.json`` there.

Source: Lee et al. 2019, arXiv:1909.04499; Lu et al. 2020, arXiv:2003.12694; Noukhovitch et al. 2023, arXiv:2312.07551.
Differs: sizes, data and steps are for minutes of one core; several samples a sentence, with the mean reward of its
samples as baseline, instead of a critic; the KL is exact over the vocabulary at every sampled prefix and a term of the
loss, and resets come without it.
Needs: pip install 'untaxed[train,eval]'.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from translation_world import (
    Problem,
    Settings,
    Translator,
    World,
    alike,
    build_world,
    descend,
    read_corpus,
    token_nll,
    trim,
)

from untaxed.callbacks import ElasticResetState
from untaxed.errors import StoreError
from untaxed.measuring.statistics import student
from untaxed.studies.store import read_json, write_json

ARMS: dict[str, dict[str, float]] = {
    "plain": {},
    "kl": {"kl": 0.1},
    "kl_strong": {"kl": 0.5},
    "reset_to_initial": {"decay": 1.0},
    "elastic_reset": {"decay": 0.98},
}
TASKS = {"bleu_de": 1, "nll_de": -1}  # and the sign that makes more better
MEASURES = ("bleu_en", *TASKS)
SHARES = (0.5, 0.8, 0.95)
Point = dict[str, Any]
Curves = Mapping[str, np.ndarray]


# ---- the game


def losses(
    world: World,
    sender: Translator,
    receiver: Translator,
    rows: Tensor,
    settings: Settings,
    kl: float,
    luck: torch.Generator,
) -> tuple[Tensor, Tensor, float]:
    """The sender's and the receiver's loss on sampled messages about these rows, and the mean reward.

    Reward is minus the receiver's mean NLL of the German tokens; a message's advantage is its distance to the mean
    reward of the same sentence's messages, scaled to standard deviation 1 in the batch.
    """
    french = trim(world.french[rows]).repeat_interleave(settings.samples, dim=0)
    german = trim(world.german[rows]).repeat_interleave(settings.samples, dim=0)
    message = sender.generate(french, settings.max_tokens, luck)
    german_nll, german_mask = token_nll(receiver(message, german), german)
    reward = -(german_nll.sum(1) / german_mask.sum(1)).detach()
    apart = reward.view(-1, settings.samples) - reward.view(-1, settings.samples).mean(1, keepdim=True)
    advantage = (apart / apart.std().clamp_min(1e-6)).view(-1, 1)
    scores = sender(french, message)
    nll, mask = token_nll(scores, message)
    per_token = advantage * nll
    if settings.entropy:
        per_token = per_token + settings.entropy * (scores.exp() * scores).sum(2) * mask
    if kl:
        with torch.no_grad():
            initial = world.sender(french, message)
        per_token = per_token + kl * (scores.exp() * (scores - initial)).sum(2) * mask
    return per_token.sum() / mask.sum(), german_nll.sum() / german_mask.sum(), float(reward.mean())


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of sacrebleu, with as many references a sentence as there are."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    streams = [[one[i] if i < len(one) else None for one in references] for i in range(most)]
    return float(corpus_bleu(list(hypotheses), streams).score)


def evaluate(world: World, sender: Translator, receiver: Translator, max_tokens: int) -> dict[str, dict[str, float]]:
    """BLEU-EN of the first hop, BLEU-DE of both, all greedy, and the first German reference's NLL a token in nats."""
    found = {}
    for split, heldout in world.heldout.items():
        message = sender.generate(trim(world.spellers["fr"].encode(heldout.french)), max_tokens)
        answer = receiver.generate(message, max_tokens)
        english, german = world.spellers["en"].decode(message), world.spellers["de"].decode(answer)
        gold = world.spellers["de"].encode([references[0] for references in heldout.german])
        with torch.no_grad():
            nll, mask = token_nll(receiver(message, gold), gold)
        scores = {"bleu_en": bleu(english, heldout.english), "bleu_de": bleu(german, heldout.german)}
        found[split] = {**scores, "nll_de": float(nll.sum() / mask.sum())}
    return found


def play(world: World, settings: Settings, *, kl: float = 0.0, decay: float | None = None, seed: int) -> list[Point]:
    """One run: both models learn from their pretrained weights; BLEU before, along the way, and around every reset.

    Args:
        kl: Weight of KL(sender, pretrained sender) a token, in nats.
        decay: Of the average that the sender is reset to; 1 resets to the pretrained sender, None never resets.
        seed: Of the order of sentences and of the messages.
    """
    luck = torch.Generator().manual_seed(seed)
    sender, receiver = copy.deepcopy(world.sender), copy.deepcopy(world.receiver)
    optimizers = [
        torch.optim.Adam(model.parameters(), lr=rate)
        for model, rate in ((sender, settings.sender_rate), (receiver, settings.receiver_rate))
    ]
    clock = {"reset_every": settings.reset_every, "update_every": settings.update_every}
    reset = None if decay is None else ElasticResetState(sender, decay=decay, **clock)
    points: list[Point] = []
    rewards: list[float] = []

    def measure(step: int, phase: str | None) -> None:
        since = {} if reset is None else {"phase": phase, "steps_since_reset": reset.steps_since_reset}
        blank = {} if not rewards else {"reward": float(np.mean(rewards))}
        points.append({"step": step, **since, **blank, **evaluate(world, sender, receiver, settings.max_tokens)})
        rewards.clear()

    measure(0, None)
    for step in range(1, settings.steps + 1):
        rows = alike(world.french, settings.batch, luck)
        sender_loss, receiver_loss, reward = losses(world, sender, receiver, rows, settings, kl, luck)
        descend(sender_loss, sender, optimizers[0], clip=1.0)
        descend(receiver_loss, receiver, optimizers[1], clip=5.0)
        rewards.append(reward)
        due = reset is not None and reset.due() and step < settings.steps  # none at the end: nothing would follow it
        if step % settings.evaluate_every == 0 or due:
            measure(step, "before" if due else None)
        if reset is not None:
            reset.step() if due else reset.skip()
        if due:
            measure(step, "after")
    return points


# ---- runs and their table


def make_runs(world: World, settings: Settings, out: Path, seeds: Sequence[int], digest: str) -> dict[str, list[Any]]:
    """Every arm with every seed, seed by seed: read where its file is there, played and written where not."""
    runs: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm, knobs in ARMS.items():
            path = out / "runs" / f"{arm}-seed{seed}.json"
            about = {"arm": arm, "knobs": knobs, "seed": seed, "settings": asdict(settings), "data": digest}
            if not path.exists():
                start = time.perf_counter()
                points = play(world, settings, **knobs, seed=seed)
                write_json(path, {**about, "seconds": round(time.perf_counter() - start, 1), "points": points})
                print(f"{arm}, seed {seed}: {points[-1]['valid']}", file=sys.stderr, flush=True)
            run = read_json(path)
            if not isinstance(run, dict) or {key: run.get(key) for key in about} != about:
                raise Problem(f"{path} was made with other data or settings; give another --out")
            runs[arm].append(run)
    return runs


def summarize(runs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Means and 95 % intervals over seeds, on the test part: at the end, and where a share of plain's gain is reached.

    For each task measure and share, an arm's point is the evaluation with the highest BLEU-EN among those that reach
    plain's gain times the share, both the mean over seeds on the validation part. ``beyond_plain`` pairs seeds. Null
    where plain's gain on validation is not clear of 0 or the arm never got there, and ``why`` says which.
    """
    curves = {arm: {split: _curves(made, split) for split in ("valid", "test")} for arm, made in runs.items()}
    summary: dict[str, Any] = {"seeds": len(runs["plain"]), "initial": runs["plain"][0]["points"][0]["test"]}
    summary["plain_gain"] = {task: student(_gain(curves["plain"]["valid"], task)[None]).json() for task in TASKS}
    summary["arms"] = {
        arm: {
            "knobs": made[0]["knobs"],
            "end": {**_at(curves[arm]["test"], -1), **_about(made, -1)},
            "matched": {task: [_matched(curves, arm, task, share, made) for share in SHARES] for task in TASKS},
        }
        for arm, made in runs.items()
    }
    return summary


def _curves(made: Sequence[Any], split: str) -> Curves:
    """Measure -> (seeds, points)."""
    return {name: np.array([[p[split][name] for p in run["points"]] for run in made]) for name in MEASURES}


def _gain(curves: Curves, task: str) -> np.ndarray:
    """How much better than at the start a task is at the end, a number a seed."""
    return (curves[task][:, -1] - curves[task][:, 0]) * TASKS[task]


def _matched(curves: Mapping[str, Any], arm: str, task: str, share: float, made: Sequence[Any]) -> dict[str, Any]:
    gain = student(_gain(curves["plain"]["valid"], task)[None])
    if gain.mean is None or gain.mean <= 0 or not (gain.why or gain.excludes_zero):
        return {"share": share, "why": "plain's gain is not clear of 0"}
    index, plain = (_choose(curves[one]["valid"], task, share * gain.mean) for one in (arm, "plain"))
    if index is None or plain is None:
        return {"share": share, "why": "never got there"}
    beyond = curves[arm]["test"]["bleu_en"][:, index] - curves["plain"]["test"]["bleu_en"][:, plain]
    found = {**_at(curves[arm]["test"], index), **_about(made, index)}
    return {"share": share, "why": None, **found, "beyond_plain": student(beyond[None]).json()}


def _choose(valid: Curves, task: str, gain: float) -> int | None:
    means = {name: found.mean(0) for name, found in valid.items()}
    reached = np.flatnonzero((means[task] - means[task][0]) * TASKS[task] >= gain)
    return int(max(reached, key=lambda i: means["bleu_en"][i])) if len(reached) else None


def _at(test: Curves, index: int) -> dict[str, Any]:
    return {name: student(found[:, index][None]).json() for name, found in test.items()}


def _about(made: Sequence[Any], index: int) -> dict[str, Any]:
    return {key: made[0]["points"][index].get(key) for key in ("step", "phase", "steps_since_reset")}


def tables(summary: Mapping[str, Any]) -> str:
    """The summary in Markdown: the end, and BLEU-EN at matched task by each task measure."""
    start = summary["initial"]
    cells = [f"{start['bleu_en']:.1f}", f"{start['bleu_de']:.1f}", f"{start['nll_de']:.2f}"]
    lines = ["| arm | BLEU-EN, end | BLEU-DE, end | NLL-DE, end |", "| --- | --: | --: | --: |"]
    lines.append("| (start) | " + " | ".join(cells) + " |")
    for arm, row in summary["arms"].items():
        end = [_text(row["end"][name], digits) for name, digits in (("bleu_en", 1), ("bleu_de", 1), ("nll_de", 2))]
        lines.append("| " + " | ".join([arm, *end]) + " |")
    for task in TASKS:
        heads = " | ".join(f"BLEU-EN at {share}" for share in SHARES)
        lines += ["", f"| matched {task} | {heads} | beyond plain's at {SHARES[1]} |"]
        lines.append("| --- |" + " --: |" * (len(SHARES) + 1))
        for arm, row in summary["arms"].items():
            found = row["matched"][task]
            at = [one["why"] or f"{_text(one['bleu_en'])}, {_place(one)}" for one in found]
            beyond = "–" if found[1]["why"] else _text(found[1]["beyond_plain"])
            lines.append("| " + " | ".join([arm, *at, beyond]) + " |")
    return "\n".join(lines)


def _text(found: Mapping[str, Any], digits: int = 1) -> str:
    interval = "" if found["why"] else f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    return f"{found['mean']:.{digits}f}{interval}"


def _place(row: Mapping[str, Any]) -> str:
    return f"step {row['step']}" + (f" {row['phase']} reset" if row["phase"] else "")


def require_packages() -> None:
    missing = [name for name in ("tokenizers", "sacrebleu") if importlib.util.find_spec(name) is None]
    if missing:
        raise Problem(f"the game needs {' and '.join(missing)}: pip install 'untaxed[train,eval]'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table; 2 when what was given is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the two files that the docstring describes")
    parser.add_argument("--out", type=Path, required=True, help="pretrained models, one file a run, summary.json")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (default: 3)")
    given = parser.parse_args(arguments)
    settings = Settings()
    torch.set_num_threads(1)  # more spin longer than they compute on models of this size
    try:
        require_packages()
        if given.seeds < 1:
            raise Problem(f"--seeds must be at least 1, got {given.seeds}")
        corpus = read_corpus(given.data, settings.max_words)
        given.out.mkdir(parents=True, exist_ok=True)
        world = build_world(corpus, settings, given.out / "pretrained.pt")
        runs = make_runs(world, settings, given.out, range(given.seeds), corpus.digest)
    except (Problem, StoreError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    summary = summarize(runs)
    write_json(given.out / "summary.json", summary)
    print(tables(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
