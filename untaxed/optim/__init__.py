"""Inside the step: optimizers that merge their update, and the wrapper that does so around any other."""

from ._adamw import OnDAREAdamW as OnDAREAdamW
from ._adamw import OnTIESAdamW as OnTIESAdamW
from ._delta import Delta as Delta
from ._delta import as_delta as as_delta
from ._delta import random_direction as random_direction
from ._delta import sft_delta as sft_delta
