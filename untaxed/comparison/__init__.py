"""Models after alignment against the one before, whoever trained them: what `untaxed measure` does."""

from .compare import Comparison as Comparison
from .compare import measure as measure
from .planned import plan as plan
from .suite_file import SuiteFile as SuiteFile
from .suite_file import load_suite as load_suite
