"""From a spec's methods to the trainings they need: methods -> arms -> settings -> runs.

An *arm* is an item of `methods`; a *setting* is one choice of its swept values; a *run* is one training, shared by all
settings whose training part is equal. Methods that act after training make *variants* of a run's kept checkpoints.
A variant of several trainings is one of its arm's run; its *members* beside it are further runs, trained alike with
seeds of their own, and no points of any arm. What is made of the initial model alone belongs to a run without training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SpecError
from ..method import Method
from ..sites import Context, Need
from .written import Part, parts_of, sweep_of

Chain = tuple[Method, ...]  # methods in the order in which they act
ALONE = ("plain", "early_stopping")  # an arm of its own, never part of a composition
GIVEN_BY: Mapping[Need, str] = {  # what methods need -> the spec's key that gives it
    "pretrained": "models.pretrained",
    "general_prompts": "data.general_prompts",
    "reference_sets": "data.reference_sets",
    "replay": "data.replay",
}
INITIAL = "initial"  # what a variant without training is made of


@dataclass(frozen=True)
class SettingPlan:
    """One choice of an arm's swept values.

    Attributes:
        label: "beta=0.3"; empty when nothing is swept.
        values: The swept values.
        training: The methods that change training: they make the run.
        after: The methods that act on its checkpoints; empty: the checkpoints themselves are judged.
    """

    label: str
    values: Mapping[str, Any]
    training: Chain
    after: Chain

    @property
    def of_initial(self) -> bool:
        """Whether it is about the initial model alone, and its run has no training."""
        return any(method.of_initial for method in self.after)

    @property
    def decoding_cost(self) -> int:
        """How many times the decoding of one model it costs."""
        return math.prod(method.decoding_cost for method in self.after)


@dataclass(frozen=True)
class ArmPlan:
    """An item of `methods`: its label ("elastic_reset + averaging"), the methods as written, its settings."""

    label: str
    methods: tuple[str, ...]
    written: list[dict[str, Any]]
    settings: tuple[SettingPlan, ...]

    @property
    def plain(self) -> bool:
        return self.methods == ("plain",)

    @property
    def early_stopping(self) -> bool:
        return self.methods == ("early_stopping",)

    @property
    def yardstick(self) -> str:
        """Why it is a curve to compare with and no remedy; empty for a remedy."""
        methods = (method for setting in self.settings[:1] for method in (*setting.training, *setting.after))
        return next((method.yardstick for method in methods if method.yardstick), "")


@dataclass(frozen=True)
class Member:
    """Whose member a run is.

    Attributes:
        main: The key of the run in which variants of it are points.
        seed: That run's seed.
        number: From 1; the run itself is number 0.
    """

    main: str
    seed: int
    number: int


@dataclass(frozen=True)
class RunPlan:
    """One training, with the variants that the arms want of its kept checkpoints.

    Attributes:
        members: The keys of the further runs that some of the variants are made of, in order.
        member: Whose member this run is; None where it is a run of an arm.
        of_initial: Whether nothing is trained: its variants are made of the initial model.
    """

    key: str
    seed: int
    training: Chain
    variants: tuple[Chain, ...]
    members: tuple[str, ...] = ()
    member: Member | None = None
    of_initial: bool = False

    def wanted(self, keep: Sequence[str], *, merges: bool | None = None) -> list[tuple[Chain, str, str]]:
        """(methods, kind of kept checkpoint, the point's name) of every variant that the arms want.

        Args:
            keep: The kinds of kept checkpoints.
            merges: Only the variants of several trainings, or only those of this one alone; None: all.
        """
        kinds = [INITIAL] if self.of_initial else [kind for kind in keep if kind != "all"]
        chains = [after for after in self.variants if merges in (None, trainings(after) > 1)]
        return [(after, of, variant_name(after, of)) for after in chains for of in kinds]

    def made_of(self, after: Chain) -> tuple[str, ...]:
        """The keys of the runs that a variant is made of, this one first."""
        return (self.key, *self.members[: trainings(after) - 1])

    @property
    def whose(self) -> str:
        """ "seed 0", "seed 0, member 1": which run of its arm it is."""
        return f"seed {self.seed}" if self.member is None else f"seed {self.member.seed}, member {self.member.number}"


def plan_arms(methods: Sequence[Any], *, where: str = "") -> tuple[ArmPlan, ...]:
    """Reads a spec's `methods`; every value takes its setting's type.

    Args:
        methods: As the spec gives them.
        where: Begins every error.
    Raises:
        SpecError: An unknown method or setting, a wrong value, an arm given twice, `early_stopping` without `plain`.
    """
    arms = [_arm(item, f"{where}methods.{index}") for index, item in enumerate(methods)]
    arms = _with_unique_labels(arms, where)
    if any(arm.early_stopping for arm in arms) and not any(arm.plain for arm in arms):
        raise SpecError(f"{where}methods: early_stopping judges plain's checkpoints; add `- plain`")
    return tuple(arms)


def _arm(item: Any, where: str) -> ArmPlan:
    parts = parts_of(item, where)
    names = tuple(part.name for part in parts)
    if len(names) > 1 and set(names) & set(ALONE):
        raise SpecError(
            f"{where}: {' and '.join(set(names) & set(ALONE))} cannot be composed; make it an arm of its own"
        )
    if len(set(names)) < len(names):
        raise SpecError(f"{where}: a method stands twice in one arm")
    _check_decoding(parts, where)
    if len(merging := [part.name for part in parts if "members" in part.row.needs]) > 1:
        raise SpecError(f"{where}: {' and '.join(merging)} each make one model of all members; give each an arm")
    written = [{part.name: part.given} for part in parts]
    return ArmPlan(" + ".join(names), names, written, tuple(_settings(parts)))


def _check_decoding(parts: Sequence[Part], where: str) -> None:
    """What writes otherwise than by its own weights leaves none for others to act on."""
    for part in parts if len(parts) > 1 else ():
        others = " and ".join(one.name for one in parts if one is not part)
        if part.row.of_initial:
            raise SpecError(
                f"{where}: {part.name} is about the initial model alone, which {others} cannot change; make it an arm "
                "of its own"
            )
        if "decoding" in part.row.acts and part is not parts[-1]:
            raise SpecError(
                f"{where}: {part.name} mixes models as they write, which leaves no weights for what stands behind it "
                f"({parts[-1].name}); put it last"
            )


def _settings(parts: Sequence[Part]) -> Iterator[SettingPlan]:
    """All choices of the swept values, the last sweep varying fastest."""
    swept = {
        (part.name, key): sweep
        for part in parts
        for key, value in part.given.items()
        if (sweep := sweep_of(value, f"{part.where}.{key}")) is not None
    }
    short = Counter(key for _, key in swept)
    for choice in itertools.product(*swept.values()):
        chosen = dict(zip(swept, choice))
        built = [_build(part, {key: value for (of, key), value in chosen.items() if of == part.name}) for part in parts]
        values = {key if short[key] == 1 else f"{name}.{key}": value for (name, key), value in chosen.items()}
        yield SettingPlan(
            label=", ".join(f"{key}={value}" for key, value in values.items()),
            values=values,
            training=tuple(method for method in built if method.trains),
            after=tuple(method for method in built if method.acts & {"after", "decoding"}),
        )


def _build(part: Part, chosen: Mapping[str, Any]) -> Method:
    return part.row.from_settings({**part.given, **chosen}, part.where)


def _with_unique_labels(arms: Sequence[ArmPlan], where: str) -> list[ArmPlan]:
    counts = Counter(arm.label for arm in arms)
    labelled = [replace(arm, label=_full_label(arm)) if counts[arm.label] > 1 else arm for arm in arms]
    for label, count in Counter(arm.label for arm in labelled).items():
        if count > 1:
            raise SpecError(f"{where}methods: the arm {label!r} is given {count} times")
    return labelled


def _full_label(arm: ArmPlan) -> str:
    return " + ".join(
        name + (f" ({', '.join(f'{key}={_short(value)}' for key, value in given.items())})" if given else "")
        for part in arm.written
        for name, given in part.items()
    )


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "|".join(map(str, value["sweep"])) if "sweep" in value else "/".join(value)


def check_arms(arms: Sequence[ArmPlan], context: Context) -> None:
    """Asks every method whether it can work here, before anything starts.

    Raises:
        Unsupported: A method says that it cannot.
        SpecError: A method trains where nothing is trained, or needs what the study does not give.
    """
    for setting in (setting for arm in arms for setting in arm.settings):
        _check_searches(setting.after)
        here = replace(context, lora=any(method.adapter() is not None for method in setting.training))
        for method in (*setting.training, *setting.after):
            if context.algorithm is None and method.trains:
                raise SpecError(
                    f"methods: {method.name} acts during training, and a study of given checkpoints trains nothing;"
                    " leave it out, or give `algorithm` in place of `models.aligned`"
                )
            if context.algorithm is None and method.trainings > 1:
                raise SpecError(
                    f"methods: {method.name} merges {method.trainings} trainings, and given checkpoints belong to one;"
                    " merge those of several trainings with `untaxed merge` and give what comes out"
                )
            for need in sorted(method.needed & set(GIVEN_BY) - context.given):
                raise SpecError(f"methods: {method.name} needs {GIVEN_BY[need]}, which is not given")
            method.check(here)


def _check_searches(after: Chain) -> None:
    """What searches before a merge of several trainings would search anew for each of them, and again for the test."""
    for place, method in enumerate(after):
        searching = next((one.name for one in after[:place] if one.measurements), None)
        if method.trainings > 1 and searching:
            raise SpecError(
                f"methods: {searching} stands before {method.name}, so it would search once for every member; put it "
                "behind, or make it an arm of its own"
            )


def plan_runs(arms: Sequence[ArmPlan], seeds: Sequence[int], identity: Any) -> dict[str, RunPlan]:
    """Every run that the arms need, by key; equal training parts share a run.

    Args:
        identity: What all runs share and what, when it changes, makes them other runs: models, data, algorithm.
    """
    runs: dict[str, RunPlan] = {}
    for setting, seed in itertools.product((setting for arm in arms for setting in arm.settings), seeds):
        key = setting_key(identity, setting, seed)
        run = runs.get(key) or RunPlan(key, seed, setting.training, (), of_initial=setting.of_initial)
        new = (setting.after,) if setting.after and setting.after not in run.variants else ()
        members = max(run.members, member_keys(identity, setting, seed), key=len)
        runs[key] = replace(run, variants=run.variants + new, members=members)
    for run in list(runs.values()):
        for number, key in enumerate(run.members, start=1):
            whose = Member(run.key, run.seed, number)
            runs.setdefault(key, RunPlan(key, member_seed(run.seed, number), run.training, (), member=whose))
    return runs


def writes_weights(after: Chain) -> bool:
    """Whether a variant is a set of weights, which can be saved."""
    return not any("decoding" in method.acts for method in after)


def trainings(after: Chain) -> int:
    """How many trainings a variant is made of."""
    return max((method.trainings for method in after), default=1)


def member_seed(seed: int, number: int) -> int:
    """The seed of a member's training: it depends on the run's seed and the member's number alone."""
    digest = hashlib.sha256(f"member {number} of seed {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # below 2**31: some libraries add a process's number


def member_keys(identity: Any, setting: SettingPlan, seed: int) -> tuple[str, ...]:
    """The keys of the members that a setting needs beside its run."""
    numbers = range(1, trainings(setting.after))
    return tuple(run_key(identity, setting.training, member_seed(seed, number)) for number in numbers)


def setting_key(identity: Any, setting: SettingPlan, seed: int) -> str:
    """The key of the run that a setting belongs to at a seed."""
    return run_key(identity, setting.training, seed, of_initial=setting.of_initial)


def run_key(identity: Any, training: Chain, seed: int, *, of_initial: bool = False) -> str:
    """A short name that is equal for equal trainings and different for different ones, and for none at all."""
    shared, inputs = {key: value for key, value in identity.items() if key != "inputs"}, identity.get("inputs", {})
    content = {"identity": shared, "methods": described(training), "seed": seed}
    if used := {need: inputs[need] for method in training for need in sorted(method.needed) if need in inputs}:
        content["inputs"] = used  # data that only some methods read makes no other run of the rest
    content |= {"of": INITIAL} if of_initial else {}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def described(chain: Chain) -> list[dict[str, Any]]:
    """Methods as plain values, for files."""
    return [{"method": method.name, **method.settings()} for method in chain]


def variant(after: Chain, of: str | None = None) -> dict[str, Any] | None:
    """What a variant is, for files: its method and settings, and the kept checkpoint it was made of."""
    if not after:
        return None
    if len(after) == 1:
        what: dict[str, Any] = described(after)[0]
    else:
        what = {"method": " + ".join(method.name for method in after), "methods": described(after)}
    return what if of is None else {**what, "of": of}


def variant_name(after: Chain, of: str) -> str:
    """The name of a variant's point, such as ``averaging-0.2@last``; it is also a folder's name."""
    return re.sub(r"[^\w.@+-]+", "_", f"{'+'.join(method.tag for method in after)}@{of}")
