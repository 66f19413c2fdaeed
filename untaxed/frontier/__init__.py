"""The reward-tax frontier: retention, tax at matched reward, recovered, area, each with its interval.

`choose` looks at validation alone and names the settings that need the test split; `summarise` reads those on test.
"""

from .area import area as area
from .area import staircase as staircase
from .choosing import ArmChoices as ArmChoices
from .choosing import Choice as Choice
from .choosing import Choices as Choices
from .choosing import choose as choose
from .points import Arm as Arm
from .points import Facts as Facts
from .points import Point as Point
from .points import Setting as Setting
from .points import lacks_room as lacks_room
from .points import left_out as left_out
from .points import retained as retained
from .points import retention as retention
from .summary import summarise as summarise
from .verdict import so_far as so_far
