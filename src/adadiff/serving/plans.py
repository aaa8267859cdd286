"""Plans made ready for the engine: times, coefficients and layers, known before anything is sampled."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from adadiff.runtime import planned_layers
from adadiff.sampling import AdaptivePipeline, SamplingPlan
from adadiff.sampling.schedulers import started
from adadiff.serving.mixed import require_independent
from adadiff.serving.solvers import Row, Solver, solver_of

REMEMBERED = 256
"""Plans whose preparation is kept: the ones used last."""


@dataclass(frozen=True)
class PreparedPlan:
    """A sampling plan with what every sample that follows it shares.

    Args:
        number: Tells the plan from all others of the engine.
        plan: The plan.
        scheduler: A diffusers scheduler at the start of the sampling; never stepped, but copied where it has no solver.
        solver: The solver that computes what the scheduler does, or None: then every sample has its own scheduler.
        coefficients: The solver's coefficients, one row a step; empty without a solver.
        times: Time of every evaluation of the model.
        alphas_cumprod: abar of every evaluation.
        layers: Layers that a sample runs at each evaluation, as planned, in 0..N.
        guided: Whether each evaluation is guided.
    """

    number: int
    plan: SamplingPlan
    scheduler: SchedulerMixin
    solver: Solver | None
    coefficients: list[Row]
    times: tuple[float, ...]
    alphas_cumprod: tuple[float, ...]
    layers: tuple[int, ...]
    guided: tuple[bool, ...]

    @property
    def evaluations(self) -> int:
        """How often the model is evaluated for a sample, its steps for the engine."""
        return len(self.times)

    @property
    def prediction_type(self) -> str:
        """What the model predicts: epsilon, v_prediction or sample."""
        return self.scheduler.config.prediction_type

    def internal_weights(self, steps: Tensor) -> Tensor:
        """Return the weights of internal guidance at some steps, (steps,) float32; 0 where there is none."""
        internal = self.plan.guidance.internal
        return torch.zeros(len(steps)) if internal is None else internal.weights(steps, self.evaluations)


class Plans:
    """Prepares sampling plans for a model, each once; any thread may ask.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: AdaptivePipeline) -> None:
        self.pipeline = pipeline
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._prepared: OrderedDict[SamplingPlan, PreparedPlan] = OrderedDict()

    def prepare(self, plan: SamplingPlan) -> PreparedPlan:
        """Prepare a plan.

        Raises:
            InputError: If the plan does not fit the model, or its policy looks at the whole batch.
        """
        try:
            hash(plan)
        except TypeError:  # a policy of the user's own, of values that cannot be looked up
            return self._prepare(plan)
        with self._lock:
            prepared = self._prepared.get(plan)
            if prepared is None:
                prepared = self._prepared[plan] = self._prepare(plan)
            self._prepared.move_to_end(plan)
            if len(self._prepared) > REMEMBERED:
                self._prepared.popitem(last=False)
            return prepared

    def _prepare(self, plan: SamplingPlan) -> PreparedPlan:
        pipeline, depth = self.pipeline.with_plan(plan), self.pipeline.denoiser.depth
        scheduler = started(copy.deepcopy(pipeline.scheduler), plan.steps)
        times = tuple(scheduler.timesteps.tolist())
        require_independent(plan.policy, len(times), depth)
        solver, alphas = solver_of(scheduler), scheduler.alphas_cumprod.numpy()
        guided = tuple(plan.guidance.applies(step, len(times)) for step in range(len(times)))
        return PreparedPlan(
            next(self._numbers),
            plan,
            scheduler,
            solver,
            [] if solver is None else solver.coefficients(scheduler),
            times,
            tuple(np.interp(times, np.arange(len(alphas)), alphas).tolist()),
            planned_layers(plan.policy, depth, guided, plan.guidance.tied),
            guided,
        )
