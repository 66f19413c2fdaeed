"""The merges that a recipe may name: mergekit's, with its names and defaults, and ours."""

from __future__ import annotations

from ._average import AverageRule
from ._dare import Consensus, DareRule
from ._linear import LinearRule
from ._model_stock import ModelStockRule
from ._recipe_row import Numbers, Parameter, Row
from ._rule import Rule
from ._settings import Value
from ._slerp import SlerpRule
from ._task_arithmetic import TaskArithmeticRule
from ._ties import TiesRule
from ._warp import WarpRule

TRUTH: dict[Value, Value] = {True: True, False: False}
RESCALE: dict[Value, Value] = {True: "l1", False: "none", "l1": "l1", "inverse": "inverse", "none": "none"}
WEIGHT = Parameter(each=True, required=True)
DENSITY = Parameter(each=True, default=1.0, least=0, above=True, most=1)
SHARE = Parameter(required=True, least=0, most=1)
ON, OFF = Parameter(default=True, words=TRUTH), Parameter(default=False, words=TRUTH)
WHOLE = "one angle a tensor is taken here; leave it out"

LINEAR = {"weight": WEIGHT, "normalize": ON}
DELTAS = {"weight": WEIGHT, "lambda": Parameter(default=1.0), "normalize": OFF}
SPARSE = {**DELTAS, "density": DENSITY, "seed": Parameter(default=0, least=0, whole=True)}
MASK = {"int8_mask": OFF}  # how mergekit keeps its masks; it changes no number there, and there is none here
NOT_RESCALED = Parameter(default=False, words=TRUTH, only=(False, "TIES does not rescale; leave it out"))
TIES = {**SPARSE, **MASK, "normalize": ON, "rescale": NOT_RESCALED}
DARE = {**SPARSE, **MASK, "rescale": Parameter(default="l1", words=RESCALE)}
NUSLERP = {
    "weight": WEIGHT,
    "nuslerp_flatten": Parameter(default=True, words=TRUTH, only=(True, WHOLE)),
    "nuslerp_row_wise": Parameter(default=False, words=TRUTH, only=(False, WHOLE)),
}
STOCK = {"filter_wise": Parameter(default=False, words=TRUTH, only=(False, WHOLE))}
WARP = {"weight": Parameter(each=True, default=1.0, least=0), "initial_share": Parameter(default=0.7, least=0, most=1)}


def _passthrough(n: Numbers) -> Rule | None:
    (scale,) = n["scale"]
    return None if scale in (None, 1) else LinearRule((scale,), normalize=False)


def _dare(n: Numbers, consensus: Consensus) -> Rule:
    given = {"rescale": n["rescale"], "normalize": n["normalize"], "scale": n["lambda"], "seed": n["seed"]}
    return DareRule(n["weight"], n["density"], consensus, **given)


ROWS = (
    Row("linear", LINEAR, lambda n: LinearRule(n["weight"], n["normalize"])),
    Row("passthrough", {"scale": Parameter(each=True)}, _passthrough, most=1),
    Row("slerp", {"t": SHARE}, lambda n: SlerpRule((1 - n["t"], n["t"])), base="first", most=1),
    Row(
        "nuslerp", NUSLERP, lambda n: WarpRule(n["weight"], initial_share=0) if n.based else SlerpRule(n["weight"]),
        base="optional", least=2, most=2,
    ),
    Row(
        "task_arithmetic", {**DELTAS, **MASK},
        lambda n: TaskArithmeticRule(n["weight"], n["lambda"], n["normalize"]), base="needed",
    ),
    Row(
        "ties", TIES,
        lambda n: TiesRule(n["weight"], n["density"], n["normalize"], n["lambda"], n["seed"]), base="needed",
    ),
    Row("dare_linear", DARE, lambda n: _dare(n, "sum"), base="needed"),
    Row("dare_ties", DARE, lambda n: _dare(n, "sign"), base="needed"),
    Row("model_stock", STOCK, lambda n: ModelStockRule(n.models), base="needed", least=2),
    # ours: base_model is the model that alignment started from
    Row(
        "averaging", {"initial_share": SHARE}, lambda n: AverageRule(n["initial_share"]), base="needed", most=1,
    ),
    Row(
        "extrapolation", {"initial_share": Parameter(required=True, most=0)},
        lambda n: TaskArithmeticRule((1 - n["initial_share"],)), base="needed", most=1,
    ),
    Row("warp", WARP, lambda n: WarpRule(n["weight"], n["initial_share"]), base="needed"),
)  # fmt: skip
METHODS = {row.name: row for row in ROWS}
