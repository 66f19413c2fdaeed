"""Inside the step: optimizers that merge their update, and the wrapper that does so around any other."""

from ._adamw import OnDAREAdamW as OnDAREAdamW
from ._adamw import OnTIESAdamW as OnTIESAdamW
from ._childtuning import ChildTuning as ChildTuning
from ._childtuning import MaskGradient as MaskGradient
from ._delta import Delta as Delta
from ._delta import as_delta as as_delta
from ._delta import random_direction as random_direction
from ._delta import sft_delta as sft_delta
from ._lora import LoRA as LoRA
from ._merge import Merging as Merging
from ._merge import Place as Place
from ._merge import merged_update as merged_update
from ._online import MergeUpdate as MergeUpdate
from ._penalties import L1 as L1
from ._penalties import L2 as L2
from ._pipeline import Pipeline as Pipeline
from ._rounding import add_rounded as add_rounded
from ._rows import MoFO as MoFO
from ._rows import OnDARE as OnDARE
from ._rows import OnlineMerging as OnlineMerging
from ._rows import OnTIES as OnTIES
from ._rows import UpdateDropout as UpdateDropout
from ._rows import check_in_step as check_in_step
from ._sides import plain_name as plain_name
from ._sites import Entry as Entry
from ._sites import wide_of as wide_of
