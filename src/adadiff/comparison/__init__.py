"""Our exits and their rivals, trained from one backbone for the same number of steps, and held against each other."""

from adadiff.comparison.config import CompareConfig, load_config
from adadiff.comparison.report import winner_in_words, write_report
from adadiff.comparison.run import Results, compare

__all__ = ["CompareConfig", "Results", "compare", "load_config", "winner_in_words", "write_report"]
