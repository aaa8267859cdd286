"""Comparison of our exits with baselines, all fine-tuned from one backbone, and of plans tuned by the same search."""

from adadiff.comparison.config import CompareConfig, load_config
from adadiff.comparison.plans.config import PlansConfig
from adadiff.comparison.plans.report import verdicts_in_words, write_plans_report
from adadiff.comparison.plans.run import PlanResults, compare_plans
from adadiff.comparison.report import winner_in_words, write_report
from adadiff.comparison.run import Results, compare

__all__ = [
    "CompareConfig",
    "PlanResults",
    "PlansConfig",
    "Results",
    "compare",
    "compare_plans",
    "load_config",
    "verdicts_in_words",
    "winner_in_words",
    "write_plans_report",
    "write_report",
]
