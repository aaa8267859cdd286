"""From noise to images."""

from adadiff.sampling.conditions import UNCONDITIONAL, Conditions
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.numbered import sample_numbered
from adadiff.sampling.pipeline import AdaDiffPipeline, AdaDiffPipelineOutput

__all__ = ["UNCONDITIONAL", "AdaDiffPipeline", "AdaDiffPipelineOutput", "Conditions", "Guidance", "sample_numbered"]
