"""What the tests of the engine share: small models, plans of every kind, images sampled alone, listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adadiff import AdaDiffPipeline, AdaptiveModel, CorrectedScheduleExit, NeverExit, ScheduleExit, ThresholdExit
from adadiff.runtime import ExitSession, Inputs, Prediction
from adadiff.sampling import Conditions, Guidance, InternalGuidance, SamplingPlan, sample_seeded
from adadiff.serving.requests import Event, Failed, Finished, Preview
from adadiff.training.config import DiffusionConfig
from tests.conftest import make_model

DEPTH = 5
PATIENCE = 60.0


def class_pipeline(prediction_type: Any = "v_prediction") -> AdaDiffPipeline:
    """Classes cat, dog and owl, and a null class; 8 x 8 pixels."""
    model = make_model(num_classes=4, class_names=["cat", "dog", "owl"], null_class=3)
    diffusion = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    pipeline = AdaDiffPipeline(model, diffusion.build())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def corrected(steps: int, early: int = 1) -> CorrectedScheduleExit:
    """Full at every second step, `early` layers between."""
    return CorrectedScheduleExit(tuple(DEPTH if step % 2 == 0 else early for step in range(steps)))


def schedule_plans() -> list[SamplingPlan]:
    """Plans whose exits do not depend on the samples, with every kind of guidance and solver."""
    late, inner = (0.3, 1.0), InternalGuidance(2, 0.4, (0.2, 0.8))
    return [
        SamplingPlan(4, NeverExit(), Guidance(3.0), "ddim"),
        SamplingPlan(9, corrected(9), Guidance(2.5), "dpm-solver++"),
        SamplingPlan(12, corrected(12, early=0), Guidance(2.0, (0.0, 0.5)), "dpm-solver++", "trailing"),
        SamplingPlan(7, ScheduleExit((5, 4, 3, 5, 2, 1, 5)), Guidance(2.0, late, tied=False), "euler"),
        SamplingPlan(6, corrected(6, early=2), Guidance(4.0, late), "ddim", "linspace"),
        SamplingPlan(8, corrected(8), Guidance(2.0, internal=inner), "dpm-solver++"),
        SamplingPlan(5, NeverExit(), Guidance(internal=InternalGuidance(3, 0.5)), "euler", "trailing"),
        SamplingPlan(10, corrected(10), Guidance(), "unipc"),
        SamplingPlan(5, corrected(5), Guidance(1.5), "ddpm"),
        SamplingPlan(6, NeverExit(), Guidance(2.0), "euler-ancestral"),
        SamplingPlan(4, corrected(7), Guidance(2.0), "HeunDiscreteScheduler"),  # 7 evaluations of the model
        SamplingPlan(6, NeverExit(), Guidance(2.0), "PNDMScheduler"),
    ]


def threshold_plans() -> list[SamplingPlan]:
    """Plans whose exits depend on the samples."""
    return [
        SamplingPlan(6, ThresholdExit(0.5, min_layer=2), Guidance(2.0), "ddim"),
        SamplingPlan(8, ThresholdExit(0.45), Guidance(3.0, (0.2, 0.9)), "dpm-solver++"),
    ]


def alone(
    pipeline: AdaDiffPipeline, plan: SamplingPlan, seed: int, label: int | str | None = None
) -> tuple[Tensor, tuple[int, ...], int]:
    """Sample one image by itself: its pixels, the layer it exits after at each step, and its FLOPs."""
    conditions = Conditions(() if label is None else (label,), guidance=plan.guidance)
    output = sample_seeded(pipeline.with_plan(plan), [0], plan.steps, plan.policy, seed, conditions)
    deepest = torch.maximum(output.trace.exit_layers, output.trace.unconditional_exit_layers)
    return output.images[0], tuple(deepest[:, 0].tolist()), int(output.trace.flops.sum())


@dataclass
class Listener:
    """Collects the events of a request."""

    images: int
    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if len(self.ended) == self.images:
            self.over.set()

    @property
    def ended(self) -> dict[int, Finished | Failed]:
        return {event.image: event for event in self.events if not isinstance(event, Preview)}

    def wait(self) -> dict[int, Finished | Failed]:
        assert self.over.wait(PATIENCE)
        assert len(self.ended) == sum(not isinstance(event, Preview) for event in self.events)
        return self.ended


class Watched(AdaptiveModel):
    """Runs `before` on the inputs of every call, and `after` on the predictions."""

    before: Callable[[Inputs], None]
    after: Callable[[Inputs, torch.Tensor], None]

    def session(self, rows: int) -> ExitSession:
        return WatchedSession(self, rows)


class WatchedSession(ExitSession):
    def _predict(self, inputs: Inputs, *arguments: Any) -> Prediction:
        watched: Any = self.denoiser
        watched.before(inputs)
        output = super()._predict(inputs, *arguments)
        watched.after(inputs, output.sample)
        return output


def watched(
    before: Callable[[Inputs], None] = lambda inputs: None,
    after: Callable[[Inputs, torch.Tensor], None] = lambda inputs, sample: None,
) -> AdaDiffPipeline:
    pipeline = class_pipeline()
    model: Any = pipeline.transformer
    model.__class__, model.before, model.after = Watched, before, after
    return pipeline


@dataclass
class Gate:
    """Holds the engine at its next call of the model while it is closed."""

    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.opened.set()

    def __call__(self, inputs: Inputs) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)

    def close(self) -> None:
        self.opened.clear()
        self.reached.clear()
