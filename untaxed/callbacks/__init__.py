"""Methods that act between optimizer steps: averages, resets, moving references; the drift meter and its guards."""

from ._average import WeightAverage as WeightAverage
from ._bema import BEMA as BEMA
from ._bema import BEMAState as BEMAState
from ._drift_meter import DriftMeter as DriftMeter
from ._drift_state import DriftMeterState as DriftMeterState
from ._elastic_reset import ElasticReset as ElasticReset
from ._elastic_reset import kept_share as kept_share
from ._elastic_state import ElasticResetState as ElasticResetState
from ._ema import EMA as EMA
from ._ema import EMAState as EMAState
from ._guards import Guard as Guard
from ._guards import limits as limits
from ._resets import DriftTriggeredReset as DriftTriggeredReset
from ._resets import ResetToAverage as ResetToAverage
from ._resets import ResetToInitial as ResetToInitial
from ._sync_reference import SyncReference as SyncReference
from ._sync_reference import SyncReferenceState as SyncReferenceState
from ._sync_reference import WARPAnchor as WARPAnchor
