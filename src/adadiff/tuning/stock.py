"""Plans of stock diffusers pipelines: number of steps, guidance scale, and the exit layer at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from adadiff.calibration.stock import STEPS, UNIT, StockSampling
from adadiff.policies import NeverExit, ScheduleExit
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.sampling.folder import Batch
from adadiff.sampling.images import FLOPS, noted_image
from adadiff.sampling.schedulers import scheduler_name
from adadiff.stock import StockSampler
from adadiff.stock.exits import checked_exits
from adadiff.stock.folder import as_images, pictures
from adadiff.stock.stored import StockContext, call_defaults
from adadiff.stock.switch import depth_of, trying
from adadiff.tuning.space import Space
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError

SCALE = "guidance_scale"


class TunableStockPipeline(Tunable):
    """A stock pipeline, called as ever, with the number of steps and the guidance scale that a plan says.

    Args:
        pipe: A diffusers pipeline of images.
        prompts: What to sample, in turn, as `adadiff.calibrate` takes it.
        layers: Names of the transformers' lists of blocks; see `adadiff.enable`.
        arguments: The other arguments of the pipeline's call. The number of steps and the guidance scale among them,
            or else the pipeline's own, are the default that compute is relative to.

    Raises:
        InputError: If an argument is invalid, or the pipeline cannot be cut, or its call takes no number of steps.
    """

    is_own = False

    def __init__(
        self, pipe: Any, prompts: Sequence[Any], layers: Sequence[str] | None = None, **arguments: Any
    ) -> None:
        own = call_defaults(pipe)
        call = {**own, **arguments}
        self.pipe, self.conditions, self.layers, self.arguments = pipe, prompts, layers, arguments
        self.can_be_guided = SCALE in own
        if STEPS not in call:
            raise InputError(f"{type(pipe).__name__} takes no {STEPS}, which a plan has to choose")
        guidance = Guidance(max(1.0, call.get(SCALE) or 1.0))
        default = SamplingPlan(call[STEPS], guidance=guidance, scheduler=scheduler_name(pipe.scheduler))
        super().__init__(default, _classes(pipe, prompts), tuple(each for each in prompts if isinstance(each, str)))
        self.exits = checked_exits(None, self.depth)
        self._known: dict[tuple[int, float], StockSampling] = {}  # by steps and scale

    @property
    def depth(self) -> int:
        return depth_of(self.pipe, self.layers)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        with self.kept():
            images = as_images(self._sampling(self.default).like(0, "pt").batch(NeverExit(), [0]).images)
        return images.shape[1], images.shape[2], images.shape[3]

    @property
    def prediction_flops(self) -> float:
        return UNIT

    @property
    def unit_flops(self) -> float:
        return self._sampling(self.default).unit_flops

    def flops(self, plan: SamplingPlan) -> float:
        sampling, policy = self._sampling(plan), plan.policy
        if isinstance(policy, ScheduleExit):  # the parts are those between recorded exits
            recorded = (0, *self.exits, self.depth)
            policy = replace(policy, layers=tuple(recorded.index(layer) for layer in policy.layers))
        return sampling.flops(policy)

    def space(self) -> Space:
        return Space.around(
            self.default,
            schedulers=(str(self.default.scheduler),),
            spacings=(),
            guided=self.can_be_guided,
            intervals=False,
        )

    def sampled(self, plan: SamplingPlan, seed: int, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        for numbers in batches:
            yield numbers, self._images(plan, seed, numbers)

    def sampling(self, plan: SamplingPlan, seed: int) -> StockSampling:
        return self._sampling(plan).like(seed, "latent")

    def context(self, plan: SamplingPlan) -> StockContext:
        return self._sampling(plan).context()

    def describe(self, seed: int) -> dict[str, Any]:
        return self.sampling(self.default, seed).settings()

    def kept(self) -> AbstractContextManager[None]:
        return trying(self.pipe)

    def _images(self, plan: SamplingPlan, seed: int, numbers: Sequence[int]) -> list[bytes]:
        """Sample a batch; return each image as the content of a PNG file, with its FLOPs as PNG text."""
        sampling = self._sampling(plan).like(seed, "pt")
        batch = sampling.batch(plan.policy, numbers)
        flops = round(UNIT * batch.flops / sampling.values_per_row / len(numbers))
        return [noted_image(picture, {FLOPS: [flops]}) for picture in pictures(batch.images)]

    def _sampling(self, plan: SamplingPlan) -> StockSampling:
        """Return what samples at a plan's settings, whose costs were counted once on one image."""
        key = plan.steps, plan.guidance.scale
        if key not in self._known:
            chosen = {STEPS: plan.steps} | ({SCALE: plan.guidance.scale} if self.can_be_guided else {})
            sampler = StockSampler(self.pipe, self.conditions, 0, {**self.arguments, **chosen})
            self._known[key] = StockSampling(sampler, self.exits, self.layers, "latent")
        return self._known[key]


def _classes(pipe: Any, prompts: Sequence[Any]) -> tuple[str | int, ...]:
    """Return the classes among the prompts, by name where the pipeline names them."""
    labels: Mapping[str, int] = getattr(pipe, "labels", None) or {}
    names = {index: name for name, index in labels.items()}
    return tuple(names.get(each, each) for each in prompts if isinstance(each, int))
