"""From noise to images."""

from adadiff.sampling.conditions import UNCONDITIONAL, Conditions
from adadiff.sampling.guidance import Guidance, InternalGuidance
from adadiff.sampling.pipeline import AdaDiffPipelineOutput, AdaptivePipeline
from adadiff.sampling.plan import SamplingPlan
from adadiff.sampling.seeded import sample_seeded

__all__ = [
    "UNCONDITIONAL",
    "AdaDiffPipelineOutput",
    "AdaptivePipeline",
    "Conditions",
    "Guidance",
    "InternalGuidance",
    "SamplingPlan",
    "sample_seeded",
]
