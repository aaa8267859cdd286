"""Refining corrected schedules: an extrapolation fitted to the images that the policy itself samples.

What is recorded along samplings of the full model does not show how early exits change the samples that later steps
begin with. Here the policy samples, and its images are compared with the full model's. Then it samples again with each
weight of its extrapolation changed a little, which shows what the weight does to the final images, the network's
response and the scheduler included. The weights by which the images would meet the full model's best follow by least
squares: a step of the Gauss-Newton method, damped as much as cross-validation over the samples asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.cache import Tensors
from adadiff.calibration.result import Point
from adadiff.calibration.trials import Trials
from adadiff.policies import CorrectedScheduleExit

MOST_SAMPLES = 48  # samples that weights are fitted to
MOST_WEIGHTS = 120  # the policy samples once for each; with more early steps the errors are small anyway
CHANGES = (0.004, 0.1, 0.1)  # changes of the weights of value, slope and curvature that show what they do
DAMPINGS = tuple(10.0**k for k in np.arange(-3, 2.1, 0.5))  # relative to what each weight does by itself
FOLDS = 8  # of the cross-validation
ROUNDS = 3  # most times that an extrapolation is fitted
MUCH = 0.5  # most of the error that a round leaves, if another follows


def refined_in_rounds(
    trials: Trials, point: Point, depth: int, numbers: Sequence[int], judged_on: Sequence[int]
) -> Point:
    """Fit the extrapolation of a corrected schedule to its own images, again as long as their error falls by much.

    Args:
        trials: Samples with policies.
        point: The policy, measured on `judged_on`; one of another kind stays as it is.
        depth: Number of layers N of the model.
        numbers: The samples to fit to.
        judged_on: The samples whose error decides whether a fit is kept.
    """
    for _ in range(ROUNDS):
        if not isinstance(point.policy, CorrectedScheduleExit):
            break
        policy = refined(trials, point.policy, depth, numbers)
        found = trials.sample(point.kind, policy, judged_on)
        before, point = point, min(point, found, key=lambda each: each.error)
        if point.error > MUCH * before.error:
            break
    return point


def refined(trials: Trials, policy: CorrectedScheduleExit, depth: int, numbers: Sequence[int]) -> CorrectedScheduleExit:
    """Return a schedule with an extrapolation that brings its images closer to the full model's.

    Args:
        trials: Samples with policies.
        policy: The schedule; its exit layers stay as they are.
        depth: Number of layers N of the model.
        numbers: The samples to fit to, in any number; `MOST_SAMPLES` of them are used.

    Returns:
        The refined schedule; the same one if no change helps, or there are more weights than `MOST_WEIGHTS`.
    """
    free = _free_weights(policy, depth)
    if not 0 < len(free) <= MOST_WEIGHTS:
        return policy
    weights = np.array([policy.extrapolation_at(step) for step in range(len(policy.layers))])
    used, size = numbers[:MOST_SAMPLES], trials.batch_size
    batches = [used[first : first + size] for first in range(0, len(used), size)]
    with tqdm(total=len(batches) * len(free), desc="fitting the extrapolation to the images", unit="sampling") as bar:
        products = [_products(trials, policy, weights, free, batch, bar) for batch in batches]
    weights[tuple(zip(*free, strict=True))] += _fitted(np.concatenate(products))
    return _with_weights(policy, weights.round(4))


def _free_weights(policy: CorrectedScheduleExit, depth: int) -> list[tuple[int, int]]:
    """Return the step and term of each weight that counts: as many terms as full steps came before, at most 3."""
    full = np.cumsum([layer == depth for layer in policy.layers])
    return [
        (step, term)
        for step, layer in enumerate(policy.layers)
        if layer < depth
        for term in range(min(int(full[step]), len(CHANGES)))
    ]


def _products(
    trials: Trials,
    policy: CorrectedScheduleExit,
    weights: NDArray[np.floating],
    free: Sequence[tuple[int, int]],
    numbers: Sequence[int],
    bar: tqdm[object],
) -> NDArray[np.floating]:
    """Return each sample's products of what the weights do to its image, and what the image lacks, in that order.

    Returns:
        (samples, weights + 1, weights + 1) float64.
    """

    def images_with(weights: NDArray[np.floating]) -> Tensor:
        return trials.sampling.batch(_with_weights(policy, weights), numbers).images

    def measured() -> Tensors:
        own = images_with(weights)
        columns = []
        for step, term in free:
            changed = weights.copy()
            changed[step, term] += CHANGES[term]
            columns.append((images_with(changed) - own) / CHANGES[term])
            bar.update()
        columns.append(trials.full_images(numbers) - own)
        effects = torch.stack(columns, 1).flatten(2)  # (samples, weights + 1, values)
        return {"products": (effects @ effects.mT).double()}

    return trials.cache.compute_once(f"what the weights of {policy} do to {numbers}", measured)["products"].numpy()


def _fitted(products: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the change of each weight, (weights,), from the products of samples as `_products` returns them.

    Cross-validation decides how much it is damped; all are 0 if it finds no gain in any.
    """
    folds = [products[fold::FOLDS].sum(0) for fold in range(min(FOLDS, len(products)))]
    total = products.sum(0)
    left = [sum(_left(_step(total - fold, damping), fold) for fold in folds) for damping in DAMPINGS]
    best = int(np.argmin(left))
    return _step(total, DAMPINGS[best]) if left[best] < total[-1, -1] else np.zeros(len(total) - 1)


def _step(products: NDArray[np.floating], damping: float) -> NDArray[np.floating]:
    """Solve for the change of the weights, (weights,); products are summed over samples."""
    normal, target = products[:-1, :-1], products[:-1, -1]
    scale = np.diag(normal)
    return np.linalg.solve(normal + np.diag(damping * scale + (scale == 0)), target)


def _left(change: NDArray[np.floating], products: NDArray[np.floating]) -> float:
    """Return the squared error that is left after a change of the weights."""
    combined = np.append(-change, 1)
    return float(combined @ products @ combined)


def _with_weights(policy: CorrectedScheduleExit, weights: NDArray[np.floating]) -> CorrectedScheduleExit:
    return replace(policy, extrapolation=tuple(map(tuple, weights.tolist())))
