"""Studies: a spec becomes runs, runs become results, results become a summary."""

from .results import load_results as load_results
from .spec import StudySpec as StudySpec
from .spec import load_spec as load_spec
from .study import Study as Study
from .study import run_study as run_study
