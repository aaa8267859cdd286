"""Comparison of tuned plans: every method's steps, guidance and own settings are found by the same search."""

from adadiff.comparison.plans.config import PlansConfig
from adadiff.comparison.plans.report import verdicts_in_words, write_plans_report
from adadiff.comparison.plans.run import PlanResults, compare_plans

__all__ = ["PlanResults", "PlansConfig", "compare_plans", "verdicts_in_words", "write_plans_report"]
