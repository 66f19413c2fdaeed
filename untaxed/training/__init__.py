"""Algorithms on TRL's trainers, `attach`, and the defaults that hold on this machine."""

from .adapters import Merged as Merged
from .adapters import trains_adapter as trains_adapter
from .algorithms import ALGORITHMS as ALGORITHMS
from .algorithms import Algorithm as Algorithm
from .arguments import check_arguments as check_arguments
from .attached import Attached as Attached
from .attached import attach as attach
from .attached import join as join
from .defaults import machine_defaults as machine_defaults
from .drift import with_meter as with_meter
from .inputs import with_inputs as with_inputs
from .keep_best import KeepBest as KeepBest
from .loop import Moment as Moment
from .loop import Outcome as Outcome
from .loop import train as train
from .suite_meter import SuiteMeter as SuiteMeter
from .suite_meter import SuiteMeterState as SuiteMeterState
from .task import Reward as Reward
from .task import Task as Task
from .trainer import check_training as check_training
from .trainer import make_trainer as make_trainer
