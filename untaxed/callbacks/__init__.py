"""Methods that act between optimizer steps: averages and resets; the drift meter and its guards."""

from ._average import WeightAverage as WeightAverage
from ._drift_meter import DriftMeter as DriftMeter
from ._drift_state import DriftMeterState as DriftMeterState
from ._elastic_reset import ElasticReset as ElasticReset
from ._elastic_reset import ElasticResetState as ElasticResetState
from ._elastic_reset import kept_share as kept_share
from ._ema import EMA as EMA
from ._ema import EMAState as EMAState
from ._guards import Guard as Guard
from ._guards import limits as limits
from ._resets import DriftTriggeredReset as DriftTriggeredReset
from ._resets import ResetToAverage as ResetToAverage
from ._resets import ResetToInitial as ResetToInitial
