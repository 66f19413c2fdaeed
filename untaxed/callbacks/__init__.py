"""Methods that act between optimizer steps: averages and resets."""

from ._average import WeightAverage as WeightAverage
from ._elastic_reset import ElasticReset as ElasticReset
from ._elastic_reset import ElasticResetState as ElasticResetState
from ._elastic_reset import kept_share as kept_share
