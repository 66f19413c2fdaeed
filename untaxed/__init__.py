"""Align language models without the alignment tax.

The names below are loaded when they are first used, and torch with them: `import untaxed` alone loads nothing heavy, so
that the command line is ready for Ctrl-C from its first moment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UntaxedError as UntaxedError

if TYPE_CHECKING:
    from .callbacks import BEMA as BEMA
    from .callbacks import EMA as EMA
    from .callbacks import BEMAState as BEMAState
    from .callbacks import DriftMeter as DriftMeter
    from .callbacks import DriftMeterState as DriftMeterState
    from .callbacks import DriftTriggeredReset as DriftTriggeredReset
    from .callbacks import ElasticReset as ElasticReset
    from .callbacks import ElasticResetState as ElasticResetState
    from .callbacks import Guard as Guard
    from .callbacks import ResetToAverage as ResetToAverage
    from .callbacks import ResetToInitial as ResetToInitial
    from .callbacks import SyncReference as SyncReference
    from .callbacks import SyncReferenceState as SyncReferenceState
    from .callbacks import WARPAnchor as WARPAnchor
    from .callbacks import WeightAverage as WeightAverage
    from .comparison import measure as measure
    from .merging import average as average
    from .merging import merge as merge
    from .objectives import Distill as Distill
    from .objectives import KLLoss as KLLoss
    from .objectives import Replay as Replay
    from .optim import L1 as L1
    from .optim import L2 as L2
    from .optim import LoRA as LoRA
    from .optim import MoFO as MoFO
    from .optim import OnDARE as OnDARE
    from .optim import OnDAREAdamW as OnDAREAdamW
    from .optim import OnlineMerging as OnlineMerging
    from .optim import OnTIES as OnTIES
    from .optim import OnTIESAdamW as OnTIESAdamW
    from .optim import Pipeline as Pipeline
    from .optim import sft_delta as sft_delta
    from .projections import NSPO as NSPO
    from .projections import OGPSA as OGPSA
    from .studies import load_results as load_results
    from .studies import run_study as run_study
    from .training import KeepBest as KeepBest
    from .training import SuiteMeter as SuiteMeter
    from .training import attach as attach

__version__ = "0.1.0"

_HOMES = {
    "BEMA": ".callbacks",
    "BEMAState": ".callbacks",
    "SyncReference": ".callbacks",
    "SyncReferenceState": ".callbacks",
    "WARPAnchor": ".callbacks",
    "DriftMeter": ".callbacks",
    "DriftMeterState": ".callbacks",
    "DriftTriggeredReset": ".callbacks",
    "EMA": ".callbacks",
    "ElasticReset": ".callbacks",
    "ElasticResetState": ".callbacks",
    "Guard": ".callbacks",
    "KeepBest": ".training",
    "SuiteMeter": ".training",
    "Distill": ".objectives",
    "KLLoss": ".objectives",
    "L1": ".optim",
    "L2": ".optim",
    "LoRA": ".optim",
    "MoFO": ".optim",
    "NSPO": ".projections",
    "OGPSA": ".projections",
    "Replay": ".objectives",
    "OnDARE": ".optim",
    "OnDAREAdamW": ".optim",
    "OnTIES": ".optim",
    "OnTIESAdamW": ".optim",
    "OnlineMerging": ".optim",
    "Pipeline": ".optim",
    "ResetToAverage": ".callbacks",
    "ResetToInitial": ".callbacks",
    "WeightAverage": ".callbacks",
    "attach": ".training",
    "average": ".merging",
    "load_results": ".studies",
    "measure": ".comparison",
    "merge": ".merging",
    "run_study": ".studies",
    "sft_delta": ".optim",
}
__all__ = [
    "BEMA",
    "EMA",
    "L1",
    "L2",
    "NSPO",
    "OGPSA",
    "BEMAState",
    "Distill",
    "DriftMeter",
    "DriftMeterState",
    "DriftTriggeredReset",
    "ElasticReset",
    "ElasticResetState",
    "Guard",
    "KLLoss",
    "KeepBest",
    "LoRA",
    "MoFO",
    "OnDARE",
    "OnDAREAdamW",
    "OnTIES",
    "OnTIESAdamW",
    "OnlineMerging",
    "Pipeline",
    "Replay",
    "ResetToAverage",
    "ResetToInitial",
    "SuiteMeter",
    "SyncReference",
    "SyncReferenceState",
    "UntaxedError",
    "WARPAnchor",
    "WeightAverage",
    "attach",
    "average",
    "load_results",
    "measure",
    "merge",
    "run_study",
    "sft_delta",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'untaxed' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
