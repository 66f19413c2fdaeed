"""Methods that act after training: pure functions from weights to weights."""

from ._average import Averaging as Averaging
from ._average import average as average
