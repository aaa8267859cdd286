"""Comparison of our exits with baselines, all fine-tuned from one backbone for the same number of steps."""

from adadiff.comparison.config import CompareConfig, load_config
from adadiff.comparison.report import winner_in_words, write_report
from adadiff.comparison.run import Results, compare

__all__ = ["CompareConfig", "Results", "compare", "load_config", "winner_in_words", "write_report"]
