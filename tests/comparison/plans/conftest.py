"""The tiny model and networks of the tests of tuning, and a comparison with them."""

import pytest

from adadiff.comparison import PlansConfig, compare_plans
from tests.tuning.conftest import classes_pipeline, conditions, default, evaluator, tunable

__all__ = ["classes_pipeline", "conditions", "default", "evaluator", "tunable"]

CONFIG = PlansConfig(
    "tiny",
    "random",
    features=("searched",),
    judges=("judging",),
    floors=(0.0, 0.2),
    targets=(0.4, 0.6),
    trials=7,
    images=(12, 24),
    points=3,
    confirm=30,
    batch_size=10,
)


@pytest.fixture(scope="session")
def compared(tunable, evaluator, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "report"
    return compare_plans(CONFIG, tunable, evaluator, out), out
