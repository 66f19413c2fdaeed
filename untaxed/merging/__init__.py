"""Methods that act after training: pure functions from weights to weights."""

from ._average import Averaging as Averaging
from ._average import average as average
from ._dare import DARE as DARE
from ._dare import DareRule as DareRule
from ._dare import dare as dare
from ._extrapolation import Extrapolation as Extrapolation
from ._extrapolation import extrapolate as extrapolate
from ._linear import LinearRule as LinearRule
from ._linear import linear as linear
from ._model_stock import ModelStockRule as ModelStockRule
from ._model_stock import model_stock as model_stock
from ._rule import BLOCK as BLOCK
from ._rule import Rule as Rule
from ._rule import Survey as Survey
from ._rule import merged as merged
from ._slerp import SLERP as SLERP
from ._slerp import SlerpRule as SlerpRule
from ._slerp import slerp as slerp
from ._task_arithmetic import TaskArithmeticRule as TaskArithmeticRule
from ._task_arithmetic import task_arithmetic as task_arithmetic
from ._ties import TIES as TIES
from ._ties import TiesRule as TiesRule
from ._ties import ties as ties
from ._warp import WarpRule as WarpRule
from ._warp import warp as warp
