"""From noise to images."""

from adadiff.sampling.folder import UNCONDITIONAL, Conditions
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.pipeline import AdaDiffPipeline, AdaDiffPipelineOutput

__all__ = ["UNCONDITIONAL", "AdaDiffPipeline", "AdaDiffPipelineOutput", "Conditions", "Guidance"]
