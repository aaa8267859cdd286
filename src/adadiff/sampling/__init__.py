"""From noise to images."""

from adadiff.sampling.pipeline import AdaDiffPipeline, AdaDiffPipelineOutput

__all__ = ["AdaDiffPipeline", "AdaDiffPipelineOutput"]
