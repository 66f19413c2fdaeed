"""Methods that act between optimizer steps: averages and resets."""

from ._average import WeightAverage as WeightAverage
from ._elastic_reset import ElasticReset as ElasticReset
from ._elastic_reset import ElasticResetState as ElasticResetState
from ._elastic_reset import kept_share as kept_share
from ._ema import EMA as EMA
from ._ema import EMAState as EMAState
from ._resets import DriftTriggeredReset as DriftTriggeredReset
from ._resets import ResetToAverage as ResetToAverage
from ._resets import ResetToInitial as ResetToInitial
