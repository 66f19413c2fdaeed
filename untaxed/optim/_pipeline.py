"""`Pipeline`: functions at the sites inside a step, around any torch optimizer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import RunFailed, Unsupported
from ..weights import local
from ._groups import check_names, give_names
from ._nested import base_of, check_saved, nest, own_of
from ._place import any_true, place_of
from ._rounding import Rounding, added
from ._sites import Entry, Function, Live, Rule, called, functions_of, keep, parts_of, wide_of

log = logging.getLogger(__name__)

NonFinite = Literal["raise", "skip"]
MOMENTS = ("exp_avg", "momentum_buffer")  # what torch's optimizers call the first moment


class Pipeline(torch.optim.Optimizer):
    r"""Puts functions around any optimizer: on the gradient, on its update, on the displacement from initial.

    In one step, for every parameter that has a gradient::

        gradient -> base.step() -> update (new - old) -> displacement (new - initial)

    Functions of one site act in the order given, each on what the one before returned. The groups are the base's own,
    so schedulers and wrappers that exchange parameters see one list; our state is kept by parameter name, apart from
    the base's. Weights before the step are held while stepping only, initial weights where a displacement needs them.

    Args:
        base: The optimizer. Its parameters must have names: ``AdamW(model.named_parameters())``, or ``names``.
        gradient, update, displacement: Functions, see `Rule`; one or several.
        names: The parameters' names in the groups' order, where ``base`` was built without.
        rounding: How new weights are written in their dtype: "nearest", or "stochastic", with which changes far below
            an ulp survive in the mean. What the base itself loses in its own rounding stays lost.
        nonfinite: A gradient that is not finite: "raise", or "skip" the whole step.
        seed: Of the stochastic rounding.
    Attributes:
        base: The optimizer inside.
        skipped: Steps left out for gradients that were not finite.
    Raises:
        ValueError: Parameters without names, or with equal ones; an unknown choice.
        Unsupported: The base evaluates the closure by itself (LBFGS).
    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> half = lambda update, old, entry, state: update / 2
        >>> optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=1.0), update=half)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step(), weight.tolist()
        (None, [-0.5, -0.5])

    Notes: hyperparameters of the functions stand in the groups under their own names; where two functions have one of
    the same name, the later function's stands as ``"update.1.density"``. In a group with lr 0 nothing is proposed: its
    update and displacement functions rest, and the step counts.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        gradient: Rule | Sequence[Rule] = (),
        update: Rule | Sequence[Rule] = (),
        displacement: Rule | Sequence[Rule] = (),
        names: Iterable[str] | None = None,
        rounding: Rounding = "nearest",
        nonfinite: NonFinite = "raise",
        seed: int = 0,
    ) -> None:
        _check_choices(base, rounding, nonfinite)
        self.base, self.rounding, self.nonfinite, self.seed = base, rounding, nonfinite, seed
        self.skipped = 0
        self.defaults = dict(base.defaults)
        self._own: dict[str, dict[str, Any]] = {}  # name -> step, initial, "update.0" -> that function's state
        self.__setstate__({})  # torch's: the hooks of an optimizer
        self._sites = functions_of({"gradient": gradient, "update": update, "displacement": displacement})
        give_names(self.param_groups, names)
        for group in self.param_groups:
            self._adopt(group)

    @property
    def rules(self) -> list[Any]:
        """All functions, in the order in which they act."""
        return [function.rule for function in self._functions()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's own list."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state; of a base without any (plain SGD) ours, lest a used optimizer be taken for a fresh one."""
        return self.base.state or {live.parameter: live.own for live in self._lives(all=True) if live.own}

    def __getattr__(self, name: str) -> Any:
        if name in ("train", "eval") and "base" in vars(self):  # the modes of schedule-free optimizers
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad", "step")
        return {key: value for key, value in vars(self).items() if not key.startswith(hooks)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, named parameters as ever, to the base."""
        self.base.add_param_group(param_group)
        try:
            self._adopt(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Raises:
            ValueError: A gradient is sparse; a function refuses. Nothing was changed.
            RunFailed: A gradient is not finite, where that raises. Nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lives = list(self._lives())
        if not self._finite(lives):
            return loss
        self._check(lives)
        if self._begin():
            lives = list(self._lives())  # with the states that were just begun
        for live in lives:
            live.own["step"] = self._step(live)
            self._own.setdefault(live.place.name, live.own)
        if self._sites["gradient"]:
            self._shape_gradients(lives)
        moving = [live for live in lives if live.group.get("lr", 1) != 0]
        old = self._before(lives, moving)
        self.base.step()
        for chunk in self._chunks("update", moving):
            self._update(chunk, old)
        for live in moving:
            self._displace(live)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Does what is still owed where an interval does not divide the steps: merges, projections."""
        lives = list(self._lives(all=True))
        for chunk in self._chunks("update", lives) or [lives]:
            moved = {name for number in range(len(self._sites["update"])) for name in self._flush(number, chunk)}
            for live in chunk:
                if live.place.name in moved:
                    self._displace(live)
                self._displace(live, flush=True)

    @torch.no_grad()
    def settled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What weights become by what displacement functions promise; nothing is written.

        Args:
            weights: An average's, say, by plain name. For parameters that are not among them their own weights are
                taken, where something is owed to these.
        Returns:
            The parameters that become something else, in float32 or wider.
        """
        found: dict[str, Tensor] = {}
        functions = [one for one in self._sites["displacement"] if hasattr(one.rule, "settled")]
        for live, function in itertools.product(self._lives(all=True) if functions else (), functions):
            state, name = live.own.get(function.key), live.place.name
            if (
                state
                and "initial" in live.own
                and (name in weights or function.rule.owes(self._entry(live, function), state))
            ):
                initial = live.own["initial"]
                given = found.get(name, weights[name].to(initial) if name in weights else live.wide)
                found[name] = initial + function.rule.settled(given - initial, state)
        return found

    def restart(self, parameters: Iterable[Tensor]) -> None:
        """Somebody replaced these parameters' weights: merging windows begin anew there, and projections are owed."""
        given = list(parameters)
        chosen = {id(parameter) for parameter in given}
        for live in self._lives(all=True):
            for function in self._functions() if id(live.parameter) in chosen else ():
                if hasattr(function.rule, "restart") and function.key in live.own:
                    function.rule.restart(live.own[function.key])
        if hasattr(self.base, "restart"):
            self.base.restart(given)

    def state_dict(self) -> dict[str, Any]:
        """The base's, with every parameter's state split into ``base`` and ``pipeline``.

        Ours are DTensors where the parameter is one, so `torch.distributed.checkpoint` saves and reshards them too.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved = {**nest(self.base.state_dict(), self._lives(all=True)), "skipped": self.skipped}
        for after in self._optimizer_state_dict_post_hooks.values():
            saved = after(self, saved) or saved
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a saved state, the functions' hyperparameters and place within a merging cycle included.

        Raises:
            ValueError: It is another optimizer's, or its parameters or functions are not ours.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, dict(state_dict)) or state_dict
        check_saved(state_dict, self.param_groups, [function.key for function in self._functions()])
        self.base.load_state_dict(base_of({key: value for key, value in state_dict.items() if key != "skipped"}))
        self.skipped = int(state_dict.get("skipped", 0))
        self._own = own_of(state_dict, self._lives(all=True))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _lives(self, all: bool = False) -> Iterator[Live]:
        """The parameters that have a gradient, or all of them, in the groups' order."""
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if all or parameter.grad is not None:
                    place = place_of(name, parameter)
                    yield Live(place, parameter, group, self._own.get(place.name, {}))

    def _functions(self) -> Iterator[Function]:
        return itertools.chain.from_iterable(self._sites.values())

    def _step(self, live: Live) -> int:
        return int(live.own.get("step", 0)) + 1

    def _entry(self, live: Live, function: Function, step: int | None = None) -> Entry:
        state = self.base.state.get(live.parameter, {})
        moments = [state[key] for key in MOMENTS if isinstance(state.get(key), Tensor)]
        return Entry(
            place=live.place,
            shape=tuple(live.parameter.shape),
            group=live.group,
            settings={setting: live.group[key] for setting, key in function.settings.items()},
            step=live.own["step"] if step is None else step,
            momentum=local(moments[0].detach()) if moments else None,
            dtype=live.parameter.dtype,
            device=live.local.device,
        )

    def _finite(self, lives: list[Live]) -> bool:
        """Whether this step may be taken; all processes answer alike."""
        for live in lives:
            if live.parameter.grad.layout != torch.strided:  # type: ignore[union-attr]
                raise ValueError(
                    f"the gradient of {live.place.name!r} is sparse, and an update without its other entries cannot be "
                    "merged; build the embedding with sparse=False"
                )
        flags = [_not_finite(local(live.parameter.grad)) for live in lives]  # type: ignore[arg-type]
        bad = [live.place.name for live, one in zip(lives, any_true(flags, [live.place for live in lives])) if one]
        if not bad:
            return True
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        text = f"the gradient of {bad[0]!r}{more} is not finite"
        if self.nonfinite == "raise":
            raise RunFailed(
                f"{text}; nothing was changed; lower the learning rate; a Pipeline of your "
                "own leaves such steps out with nonfinite='skip'"
            )
        if not self.skipped:
            log.warning("%s: the step is skipped; further ones are counted in `skipped` without a word", text)
        self.skipped += 1
        return False

    def _check(self, lives: list[Live]) -> None:
        for function in self._functions():
            if hasattr(function.rule, "check"):
                function.rule.check([self._entry(live, function, self._step(live)) for live in lives])

    def _begin(self) -> bool:
        """Tells the functions that want to know that a step begins; whether there are any."""
        functions = [function for function in self._functions() if hasattr(function.rule, "begin")]
        lives = list(self._lives(all=True)) if functions else []
        for function in functions:
            states = [live.own.get(function.key, {}) for live in lives]
            function.rule.begin([self._entry(live, function, self._step(live)) for live in lives], states)
            for live, state in zip(lives, states, strict=True):
                if state:
                    self._own.setdefault(live.place.name, live.own).setdefault("step", 0)
            keep(function, lives, states)
        return bool(functions)

    def _chunks(self, site: str, lives: list[Live]) -> Iterable[list[Live]]:
        """The parameters one by one, or all at once where a function acts on them together."""
        if not self._sites[site] or not lives:
            return ()
        return [lives] if any(function.together for function in self._sites[site]) else [[live] for live in lives]

    def _shape_gradients(self, lives: list[Live]) -> None:
        for chunk in self._chunks("gradient", lives):
            gradients = [local(live.parameter.grad) for live in chunk]  # type: ignore[arg-type]
            shaped = [gradient.to(wide_of(gradient.dtype)) for gradient in gradients]
            for function in self._sites["gradient"]:
                shaped = called(function, chunk, shaped, [self._entry(live, function) for live in chunk])
            for gradient, new in zip(gradients, shaped):
                gradient.copy_(new)

    def _before(self, lives: list[Live], moving: list[Live]) -> dict[str, Tensor]:
        """Takes the initial weights of parameters that have none yet and whose displacement is acted on; the weights
        before the step of all that move."""
        for live in lives if self._sites["displacement"] else ():
            if "initial" not in live.own and any(self._follows(live, one) for one in self._sites["displacement"]):
                live.own["initial"] = live.wide.clone()
        return {live.place.name: live.local.clone() for live in moving} if self._sites["update"] else {}

    def _update(self, lives: list[Live], old: dict[str, Tensor]) -> None:
        given = [old.pop(live.place.name) for live in lives]
        before = [one.to(wide_of(one.dtype)) for one in given]
        proposed = [live.wide - one for live, one in zip(lives, before)]
        together = any(function.together for function in self._sites["update"])
        updates = [one.clone() for one in proposed] if together else proposed  # such a function may write to them
        for function in self._sites["update"]:
            entries = [self._entry(live, function) for live in lives]
            updates = called(function, lives, updates, before, entries)
        for live, origin, update, own in zip(lives, given, updates, proposed):
            self._write(live, origin, update, own, "update")

    def _flush(self, number: int, lives: Sequence[Live]) -> list[str]:
        """Writes the updates that a function still owes, as those behind it that promise something make them."""
        function, *behind = self._sites["update"][number:]
        flush = getattr(function.rule, "flush", None)
        if flush is None:
            return []
        owed = []
        for live in lives:
            old = live.wide
            update = flush(old, self._entry(live, function), live.own.get(function.key, {})) if live.own else None
            if update is not None:
                owed.append((live, old, update))
        if not owed:
            return []
        owing, before, updates = map(list, zip(*owed))
        for later in behind:
            if getattr(later.rule, "promises", False):
                updates = called(later, owing, updates, before, [self._entry(live, later) for live in owing])
        for live, update in zip(owing, updates):
            self._write(live, live.local, update, torch.zeros_like(update), "flush")
        return [live.place.name for live in owing]

    def _follows(self, live: Live, function: Function) -> bool:
        follows = getattr(function.rule, "follows", None)
        return bool(follows is None or follows(self._entry(live, function)))

    def _displace(self, live: Live, *, flush: bool = False) -> None:
        """Lets the functions act that are due; with `flush` those that owe something."""
        given = [(one, self._entry(live, one)) for one in self._sites["displacement"] if "step" in live.own]
        if flush:
            given = [(one, entry) for one, entry in given if hasattr(one.rule, "flush") and "initial" in live.own]
        else:
            given = [(one, entry) for one, entry in given if self._follows(live, one) and _due(one, entry)]
        if not given:
            return
        initial = live.own.setdefault("initial", live.wide.clone())
        whole = flush or not all(getattr(one.rule, "elementwise", False) for one, _ in given)
        for part, origin in [(live, initial)] if whole else parts_of(live, initial):
            self._displace_part(part, origin, given, flush=flush, whole=whole)

    def _displace_part(
        self, live: Live, initial: Tensor, given: Sequence[tuple[Function, Entry]], *, flush: bool, whole: bool
    ) -> None:
        proposed = displacement = live.wide - initial
        for function, entry in given:
            if not flush:
                (displacement,) = called(function, [live], [displacement], [entry])
            elif (answer := function.rule.flush(displacement, entry, live.own.get(function.key, {}))) is not None:
                displacement = answer
        if displacement is proposed:
            return
        if whole or self.rounding != "nearest" or live.local.dtype != displacement.dtype:
            self._write(live, initial.to(live.local.dtype), displacement, proposed, "displacement")
        else:
            torch.add(initial, displacement, out=live.local)

    def _write(self, live: Live, origin: Tensor, change: Tensor, proposed: Tensor, site: str) -> None:
        """Makes the weights origin + change; entries whose change is the proposed one keep the base's own value."""
        new = added(
            origin,
            change,
            self.rounding,
            seed=self.seed,
            name=f"{live.place.name}\0{site}",
            step=live.own["step"],
            offset=live.place.offset,
        )
        live.local.copy_(torch.where(change == proposed, live.local, new))

    def _adopt(self, group: dict[str, Any]) -> None:
        """Checks a new group's names and gives it the functions' hyperparameters."""
        check_names(self.param_groups)
        for function in self._functions():
            for setting, key in function.settings.items():
                group.setdefault(key, function.rule.defaults[setting])


def _check_choices(base: object, rounding: str, nonfinite: str) -> None:
    if not isinstance(base, torch.optim.Optimizer):
        raise ValueError(f"base must be a torch optimizer, got {type(base).__name__}")
    if isinstance(base, torch.optim.LBFGS):
        raise Unsupported("LBFGS evaluates the closure several times in one step; take an optimizer that does not")
    for name, value, known in (
        ("rounding", rounding, get_args(Rounding)),
        ("nonfinite", nonfinite, get_args(NonFinite)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _due(function: Function, entry: Entry) -> bool:
    return bool(not hasattr(function.rule, "due") or function.rule.due(entry))


def _not_finite(values: Tensor) -> Tensor:
    """Whether any entry is infinite or no number, in one pass and without a temporary of its size."""
    if not values.numel():
        return torch.zeros((), dtype=torch.bool, device=values.device)
    low, high = torch.aminmax(values)
    return ~(torch.isfinite(low) & torch.isfinite(high))
