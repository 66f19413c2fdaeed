"""Methods that act in the loss or on the data."""

from ._kl import KL as KL
from ._losses import distillation as distillation
from ._losses import forward_kl as forward_kl
from ._losses import negative_log_likelihood as negative_log_likelihood
from ._losses import reverse_kl as reverse_kl
from ._on_texts import OnTexts as OnTexts
from ._replay import Replay as Replay
from ._rpo import RPO as RPO
from ._to_initial import Distill as Distill
from ._to_initial import KLLoss as KLLoss
