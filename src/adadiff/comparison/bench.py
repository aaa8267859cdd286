"""The common basis that the methods of a comparison are set up on, and what they are set up to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.kinds import KINDS
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.record import record_exits
from adadiff.calibration.search import Search
from adadiff.calibration.trials import Trials
from adadiff.comparison.config import CompareConfig
from adadiff.comparison.networks import ADADIFF, FULL, Networks
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.sampling import AdaptivePipeline, Conditions, Guidance, sample_seeded

PILOT_IMAGES = 32
CALIBRATION_IMAGES = 128
PILOT_SEED = 10**6  # gives noise that no cell samples


@dataclass(frozen=True)
class Setup:
    """A method with a chosen setting, ready to sample.

    Args:
        pipeline: Pipeline with the method's network or baseline.
        policy: The exit policy.
        steps: Number of sampling steps.
        setting: The chosen setting in words, for tables.
        compute: Expected FLOPs of a sampling run over the full model's.
    """

    pipeline: AdaptivePipeline
    policy: ExitPolicy
    steps: int
    setting: str
    compute: float


class Bench:
    """The common basis that methods are set up on: configuration, networks and pilot measurements.

    Args:
        config: The configuration of the comparison.
        networks: The trained networks.
    """

    def __init__(self, config: CompareConfig, networks: Networks) -> None:
        self.config, self.networks = config, networks

    def conditions(self, pipeline: AdaptivePipeline) -> Conditions:
        """Return the conditions of the samples: all classes in turn, if the model takes classes, and the guidance."""
        return Conditions(pipeline.transformer.class_indices, guidance=Guidance(self.config.guidance_scale))

    def fraction(self, flops: float) -> float:
        """Return a prediction's FLOPs as a fraction of the full model's."""
        return flops / self.networks.pipeline(FULL).transformer.part_flops.full

    def pilot(self, pipeline: AdaptivePipeline, policy: ExitPolicy) -> float:
        """Measure the compute fraction of a policy on a pilot batch."""
        output = sample_seeded(
            pipeline, range(PILOT_IMAGES), self.config.steps, policy, PILOT_SEED, self.conditions(pipeline)
        )
        return self.fraction(int(output.trace.flops.sum()) / output.trace.predictions)

    def pilot_error(self, setup: Setup) -> float:
        """Measure a setup's error against the full model on a pilot batch, with the metric of our calibration."""
        full = self._pilot_images(self.networks.pipeline(FULL), NeverExit(), self.config.steps)
        images = self._pilot_images(setup.pipeline, setup.policy, setup.steps)
        return normalised_squared_error(full)(full, images).mean().item()

    def _pilot_images(self, pipeline: AdaptivePipeline, policy: ExitPolicy, steps: int) -> Tensor:
        indices, conditions = range(PILOT_IMAGES), self.conditions(pipeline)
        return sample_seeded(pipeline, indices, steps, policy, PILOT_SEED, conditions).images.float()

    @cached_property
    def search(self) -> Search:
        """The calibration's search for our policies, on a record of every exit along full sampling runs."""
        pipeline = self.networks.pipeline(ADADIFF)
        sampling = AdaptiveSampling(pipeline, self.config.steps, self.conditions(pipeline), PILOT_SEED)
        record = record_exits(sampling, CALIBRATION_IMAGES, PILOT_IMAGES)
        metric = normalised_squared_error(record.images)
        return Search(Trials(sampling, PILOT_IMAGES, metric), record, KINDS)
