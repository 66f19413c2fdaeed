"""What goes together in one training: every refusal of a combination, and its way out, stands here.

What one method says of the training around it alone (LoRA, an algorithm, a backend) is its own `check`; what methods
after training say of each other stands where arms are read (`studies.arms`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import Unsupported
from .method import Method
from .sites import SITES

Methods = Sequence[Method]


def check_together(methods: Methods) -> None:
    """Raises `Unsupported` where methods of one training contradict each other; they stand in the order given.

    Args:
        methods: Those that act in the training, with their settings.
    """
    for rule in RULES:
        rule(methods)


def check_overridden(methods: Methods, arguments: Mapping[str, Any]) -> None:
    """Raises `Unsupported` where a method would silently replace an argument that the algorithm was given.

    Args:
        methods: As above. What a method has as a setting of its own (`kl`'s beta) is there to replace the algorithm's.
        arguments: What the algorithm was given, before the methods.
    """
    for method in methods:
        for key, value in method.arguments().items():
            if key in arguments and arguments[key] not in (None, value) and key not in method.settings():
                raise Unsupported(
                    f"{method.name} sets {key} to {value}, and the algorithm is given {key} {arguments[key]}; leave "
                    f"{key} out of the algorithm's arguments, or the method out"
                )


def _one_resets(methods: Methods) -> None:
    if len(names := [method.name for method in methods if method.resets]) > 1:
        raise Unsupported(
            f"{' and '.join(names)} both replace the policy and would undo each other's work; keep one of them"
        )


def _one_ships(methods: Methods) -> None:
    if len(names := [method.name for method in methods if method.ships_other]) > 1:
        raise Unsupported(
            f"{' and '.join(names)}: two averages go along, and only one can be what is measured and shipped; leave "
            "one out"
        )


def _one_decides_what_is_trained(methods: Methods) -> None:
    if len(names := [method.name for method in methods if method.adapter() is not None]) > 1:
        raise Unsupported(f"{' and '.join(names)} each decide what is trained; keep one of them")


def _one_reference(methods: Methods) -> None:
    writers = [method.name for method in methods if method.writes_reference]
    off = [method.name for method in methods if getattr(method, "reference", None) == "none"]
    if off and writers:
        raise Unsupported(
            f"{off[0]} switches the KL term off (reference 'none'), and {writers[0]} works on its reference; keep one "
            "of the two"
        )
    if len(writers) > 1:
        raise Unsupported(f"{' and '.join(writers)} both work on the reference; keep one of them")


def _one_value_an_argument(methods: Methods) -> None:
    chosen: dict[str, tuple[str, Any]] = {}
    for method in methods:
        for key, value in method.arguments().items():
            other, given = chosen.setdefault(key, (method.name, value))
            if given != value:
                raise Unsupported(f"{other} sets {key} to {given}, {method.name} to {value}; keep one of them")


def _meters(methods: Methods) -> None:
    meters = [method for method in methods if method.watches]
    for meter in (meter for meter in meters if hasattr(meter, "measures")):
        _check_read(methods, meter.measures)
    names = [meter.name for meter in meters]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Unsupported(f"{twice[0]} is attached already; a trainer has one, whose values have one name each")
    if any(getattr(meter, "asks_reset", False) for meter in meters) and not any(method.resets for method in methods):
        raise Unsupported(
            "a guard is to 'reset', and no method that resets the policy is attached; give one in the same call, such "
            "as attach(trainer, DriftMeter(…), ElasticReset(decay=0.98, reset_every=60))"
        )


def _check_read(methods: Methods, measured: Sequence[str]) -> None:
    """Raises `Unsupported` where a method goes by a measure that the drift meter does not read."""
    for method in methods:
        for measure in getattr(method, "reset_when", None) or ():
            if measure not in measured:
                raise Unsupported(
                    f"{method.name}: reset_when goes by {measure}, which the drift meter beside it does not read; it "
                    f"reads {', '.join(measured)}, and given general_prompts (in a study measure.general_prompts) "
                    "these as general_… on them"
                )


def _promises_kept(methods: Methods) -> None:
    """Nothing comes behind what promises something exact of a site's outcome, but what only shortens it."""
    for place, first in enumerate(methods):
        for number, other in enumerate(methods):
            for site in sorted(first.promises & other.acts, key=SITES.index):
                behind = number > place or site not in first.acts
                if other is not first and behind and not other.shortens:
                    raise Unsupported(f"{first.name}, {other.name}: {_way_out(first, other, site)}")


def _way_out(first: Method, other: Method, site: Any) -> str:
    if site in first.acts and site in other.promises:
        return (
            f"both promise something exact of the {site}, and the second undoes the first; give one of them another "
            "`site`, or leave one out"
        )
    if site in first.acts:
        return (
            f"the second changes the {site} behind the first and undoes what that promises of it; put {first.name} "
            f"behind {other.name}"
        )
    return (
        f"the second changes the {site}, later in the step, and undoes what the first promises; give {first.name} the "
        f"site {site!r} and put it behind {other.name}"
    )


RULES: tuple[Callable[[Methods], None], ...] = (
    _one_resets,
    _one_ships,
    _one_decides_what_is_trained,
    _one_reference,
    _one_value_an_argument,
    _meters,
    _promises_kept,
)
