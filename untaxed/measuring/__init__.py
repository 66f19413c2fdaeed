"""Rewards, abilities and drift of a model: named measures, each with its per-item scores."""

from .abilities import Choice as Choice
from .abilities import Item as Item
from .abilities import exact_match as exact_match
from .abilities import multiple_choice as multiple_choice
from .drift import entropy as entropy
from .drift import forward_kl as forward_kl
from .drift import length as length
from .drift import reverse_kl as reverse_kl
from .isolation import own_precision as own_precision
from .isolation import undisturbed as undisturbed
from .perplexity import perplexity as perplexity
from .reading import Reading as Reading
from .reading import measure as measure
from .rewards import reward as reward
from .sampling import Completions as Completions
from .subject import Subject as Subject
from .suite import Measure as Measure
from .suite import Reward as Reward
from .suite import Sampling as Sampling
from .suite import Suite as Suite
