"""Methods that change no weights: what is shipped is another way of writing with models that exist."""

from ._best_of_n import BestOfN as BestOfN
from ._best_of_n import best_of_kl as best_of_kl
from ._best_of_n import best_of_shares as best_of_shares
from ._logit_mixing import LogitMixing as LogitMixing
from ._logits import mix_logits as mix_logits
from ._mixture import LogitMixture as LogitMixture
