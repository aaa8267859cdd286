"""Seconds of a tick by depth and rows, measured on this machine, and what follows: a rule, a width, work ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adadiff.policies import CorrectedScheduleExit, FixedExit, NeverExit
from adadiff.runtime import Inputs
from adadiff.sampling import AdaptivePipeline, SamplingPlan
from adadiff.serving.batcher import Candidate, Rule, choose
from adadiff.serving.plans import Plans
from adadiff.serving.sampler import Sampler

REPEATS = 3
LONG_CALL = 0.5
"""Seconds after which a call is not repeated, and from which on larger batches are not measured, but extrapolated."""
GAIN = 1.1
"""How much faster another way to batch must be than the one preferred: less is within the error of the measurement."""


@dataclass(frozen=True)
class CallCosts:
    """Seconds of calls of the model, and of the engine's own work on them.

    Args:
        rows: Numbers of rows that were measured, rising.
        first: Seconds of a call that runs one layer, by number of rows: embedding, the layer, and the output head.
        layer: Seconds of each further layer, by number of rows.
        own: Seconds of the engine's own work on a call, whatever its layers: solvers, corrections carried on.
        own_row: Seconds of it for each row.

    Examples:
        >>> costs = CallCosts(rows=(1, 16), first=(0.002, 0.008), layer=(0.001, 0.004))
        >>> f"{costs.seconds([9] * 16):.3f}"  # 16 rows, all 9 layers
        '0.040'
        >>> f"{costs.seconds([9] + [1] * 15):.3f}"  # 15 of them exit after the first
        '0.016'
    """

    rows: tuple[int, ...]
    first: tuple[float, ...]
    layer: tuple[float, ...]
    own: float = 0.0
    own_row: float = 0.0

    def seconds(self, layers: Sequence[int]) -> float:
        """Predict the seconds of a call.

        Args:
            layers: Layers that each row runs; rows at layer 0 cost the engine's own work alone.
        """
        own = self.own + self.own_row * len(layers) if layers else 0.0
        counts = np.array([sum(own >= layer for own in layers) for layer in range(1, max(layers, default=0) + 1)])
        if not len(counts):
            return own
        return own + float(self._at(self.first, counts[:1]).sum() + self._at(self.layer, counts[1:]).sum())

    def share(self, layers: int, rows: int, width: int) -> float:
        """Return one sample's share of the seconds of a full call in which all samples do the same.

        Args:
            layers: Layers that each row runs.
            rows: Rows of each sample: 2 where it is guided, else 1.
            width: Samples in the call.
        """
        return self.seconds([layers] * (rows * width)) / width

    def _at(self, seconds: tuple[float, ...], rows: np.ndarray) -> np.ndarray:
        """Interpolate between the measured numbers of rows; beyond the last, seconds grow with the rows."""
        return np.interp(rows, self.rows, seconds) * np.maximum(rows / self.rows[-1], 1)


def measure_costs(pipeline: AdaptivePipeline, most_rows: int) -> CallCosts:
    """Time calls of one layer and of all layers, with few and with many rows: the fastest of a few calls each.

    Other work on the machine only ever adds time, and a call of more rows takes no less: both are used against noise.

    Args:
        pipeline: The model.
        most_rows: Rows of the largest call.
    """
    measured, depth = [], pipeline.denoiser.depth
    for rows in sorted({1, *(max(most_rows // parts, 1) for parts in (8, 4, 2, 1))}):
        full = _fastest_seconds(_call(pipeline, rows, depth))
        one = _fastest_seconds(_call(pipeline, rows, 1)) if depth > 1 else full
        measured.append((rows, one, max(full - one, 0) / max(depth - 1, 1)))
        if full > LONG_CALL:
            break
    rows_of, first, layers = zip(*measured, strict=True)
    return CallCosts(rows_of, _rising(first), _rising(layers), *_own_work(pipeline, rows_of[len(rows_of) // 2]))


def _rising(seconds: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(np.maximum.accumulate(seconds).tolist())


def _call(pipeline: AdaptivePipeline, rows: int, layers: int) -> Callable[[], object]:
    """Return a call of the model in which all rows run so many layers."""
    backbone, device, dtype = pipeline.transformer.backbone, pipeline._execution_device, pipeline.transformer.dtype
    denoiser, conditions = pipeline.denoiser, _conditions(pipeline, rows)
    sample = torch.zeros(rows, backbone.in_channels, *backbone.sample_size, dtype=dtype, device=device)
    inputs = Inputs(sample, torch.full((rows,), 100.0, device=device), conditions)
    session, steps = denoiser.session(rows), torch.zeros(rows, dtype=torch.int64)
    # baselines have no exits, and take no other policy than one that never exits
    policy = NeverExit() if layers == denoiser.depth or denoiser is not pipeline.transformer else FixedExit(layers)
    return lambda: session.predict(inputs, steps, policy).exit_layers


def _conditions(pipeline: AdaptivePipeline, rows: int) -> dict[str, Tensor]:
    """Return the model's keyword arguments for some condition, (rows, ...) each."""
    backbone, device, dtype = pipeline.transformer.backbone, pipeline._execution_device, pipeline.transformer.dtype
    conditions = {}
    if backbone.num_classes is not None:
        conditions["class_labels"] = torch.zeros(rows, dtype=torch.int64, device=device)
    if backbone.context_shape is not None:
        conditions["encoder_hidden_states"] = torch.zeros(rows, *backbone.context_shape, dtype=dtype, device=device)
    return conditions


def _own_work(pipeline: AdaptivePipeline, rows: int) -> tuple[float, float]:
    """Return the seconds of the engine's own work on a call, and on each row, by steps that run no layer.

    Baselines, which have no such steps, count as if there were none.
    """
    denoiser = pipeline.denoiser
    if denoiser is not pipeline.transformer:
        return 0.0, 0.0
    layers = (denoiser.depth,) * 2 + (0,) * (REPEATS + 2)
    prepared = Plans(pipeline).prepare(SamplingPlan(len(layers), CorrectedScheduleExit(layers)))

    def seconds(count: int) -> float:
        sampler, conditions = Sampler(pipeline, count), _conditions(pipeline, 1)
        samples = [sampler.begin(slot, slot, prepared, slot, conditions, {}) for slot in range(count)]
        for _ in range(2):
            sampler.step(samples)
        return _fastest_seconds(lambda: sampler.step(samples))

    one, many = seconds(1), seconds(rows)
    each = max(many - one, 0.0) / max(rows - 1, 1)
    return max(one - each, 0.0), each


def _fastest_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls, the one to warm up included: of two where they take long."""
    seconds = list[float]()
    while len(seconds) < 2 or (len(seconds) <= REPEATS and sum(seconds) < LONG_CALL):
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Profile:
    """What the steps of a plan ask of the machine.

    Args:
        layers: Layers that an image runs at each step, in 0..N.
        guided: Whether each step is guided, and so runs two rows.
    """

    layers: tuple[int, ...]
    guided: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def rows(self, step: int) -> list[int]:
        """Return the layers of each row of an image at a step."""
        return [self.layers[step]] * (2 if self.guided[step] else 1)


@dataclass(frozen=True)
class Batching:
    """How samples run together.

    Args:
        rule: The rule that chooses them.
        width: Most samples in a call.
    """

    rule: Rule
    width: int


def simulated_seconds(
    costs: CallCosts, profile: Profile, depth: int, slots: int, batching: Batching, images: int
) -> float:
    """Predict the seconds that images of one plan take where every slot is always taken.

    The samples begin at all steps of the plan, evenly, as traffic finds them.

    Args:
        costs: Seconds of calls.
        profile: Layers and guidance of the plan.
        depth: Layers N of the model.
        slots: Number of running samples.
        batching: How samples run together.
        images: Images to make, in steps of their plan.
    """
    steps = [slot * len(profile) // slots for slot in range(slots)]
    waited = [0] * slots
    left, seconds = images * len(profile), 0.0  # steps
    while left > 0:
        candidates = [Candidate(slot, 2 * profile.layers[steps[slot]] > depth, waited[slot]) for slot in range(slots)]
        chosen = choose(candidates, batching.width, batching.rule)
        seconds += costs.seconds([layers for slot in chosen for layers in profile.rows(steps[slot])])
        waited = [ticks + 1 for ticks in waited]
        for slot in chosen:
            waited[slot] = 0
            steps[slot] = (steps[slot] + 1) % len(profile)
        left -= len(chosen)
    return seconds


def fastest_batching(costs: CallCosts, profile: Profile, depth: int, slots: int, width: int) -> Batching:
    """Return how a saturated engine finishes most images a second, as `simulated_seconds` predicts.

    Where the difference is small, wide calls are preferred, and `barrier`, by which short requests are done sooner
    (`benchmarks/serving_traffic.py`). Narrow calls can be faster where the activations of wide ones leave the cache.

    Args:
        costs: Seconds of calls.
        profile: Layers and guidance of the plan that is asked for most.
        depth: Layers N of the model.
        slots: Number of running samples.
        width: Most samples in a call that are allowed.

    Examples:
        >>> schedule = Profile(layers=(9, 9, 1, 9, 1, 1), guided=(False,) * 6)
        >>> gpu = CallCosts(rows=(1, 64), first=(0.001, 0.001), layer=(0.001, 0.001))  # rows do not fill it
        >>> fastest_batching(gpu, schedule, depth=9, slots=32, width=32)
        Batching(rule='barrier', width=32)
        >>> remote = CallCosts(rows=(1, 64), first=(0.1, 0.1), layer=(0.001, 0.001))  # every call takes long
        >>> fastest_batching(remote, schedule, depth=9, slots=32, width=32)
        Batching(rule='mixed', width=32)
    """
    widths = [width // parts for parts in (1, 2, 4, 8) if width // parts]
    preferred = [Batching(rule, most) for most in widths for rule in ("barrier", "mixed")]
    seconds = {way: simulated_seconds(costs, profile, depth, slots, way, 2 * slots) for way in preferred}
    best = preferred[0]
    for way in preferred[1:]:
        if GAIN * seconds[way] < seconds[best]:
            best = way
    return best


class WorkEstimate:
    """Predicts the seconds of work ahead: the measured costs of calls, corrected by the speed seen since.

    Work is counted in seconds of full calls, in which a sample has the share of its rows.

    Args:
        costs: Seconds of calls.
        width: Most samples in a call.

    Examples:
        >>> estimate = WorkEstimate(CallCosts(rows=(1, 16), first=(0.002, 0.008), layer=(0.001, 0.004)), width=16)
        >>> for _ in range(100):
        ...     estimate.observe(work=0.1, seconds=0.2)
        >>> f"{estimate.correction:.1f}"
        '2.0'
    """

    HALF_LIFE = 2.0
    """Seconds of busy ticks after which what was seen counts half; at the start, the costs count as so many seconds."""
    OUTLIER = 4.0

    def __init__(self, costs: CallCosts, width: int) -> None:
        self.costs, self.width = costs, width
        self._work = self._seconds = self.HALF_LIFE
        self._shares: dict[tuple[int, int], float] = {}

    @property
    def correction(self) -> float:
        """Seconds that a second of work takes in fact: of all work of late, so that short ticks count little."""
        return self._seconds / self._work

    def ahead(self, profile: Profile) -> tuple[float, ...]:
        """Return the work that is left of an image before each of its steps: (steps,) falling floats."""
        shares = [self._share(*step) for step in zip(profile.layers, profile.guided, strict=True)]
        return tuple(np.cumsum(shares[::-1])[::-1].tolist())

    def observe(self, work: float, seconds: float) -> None:
        """Learn from a busy tick: `work` is the sum of its samples' shares, and `seconds` what it took.

        A tick's seconds count within a factor of those expected, as one that the system interrupts may take long.
        """
        expected = self.correction * work
        seconds = min(max(seconds, expected / self.OUTLIER), expected * self.OUTLIER)
        kept = 0.5 ** (seconds / self.HALF_LIFE)
        self._work, self._seconds = kept * self._work + work, kept * self._seconds + seconds

    def _share(self, layers: int, guided: bool) -> float:
        """Return the seconds of one step of one image in full calls."""
        key = layers, 2 if guided else 1
        if key not in self._shares:
            self._shares[key] = self.costs.share(*key, self.width)
        return self._shares[key]
