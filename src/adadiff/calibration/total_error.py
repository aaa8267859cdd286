"""The error that a corrected schedule makes of the final image, and the extrapolation that makes it least.

An early exit at step k errs by e_k = d_k - sum of c_j d_j: its difference from the full prediction, less what is
carried on from the last full steps j. Such errors add up over the sampling as vectors. Neighbours often cancel, as a
line overshoots at one step and undershoots at the next. What one step changes is turned by the network in the steps
that follow, so that the products of two errors count less the further they are apart: the error of the final image is
the sum of likeness^|j - k| sqrt(influence_j influence_k) <e_j, e_k> over all pairs of early steps.

It is a quadratic function of the weights of value, slope and curvature (`runtime/extrapolation.py`), which are fitted
to make it least, all steps at once. Fitted to each step alone they err more: each is drawn towards too little change,
and all in the same direction. The figures are in docs/calibration.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from adadiff.calibration.record import LONGEST_GAP
from adadiff.policies import LINE
from adadiff.runtime import newton_terms

PULL = 4.0  # pull of the fitted weights towards those of a line, relative to what each adds to the error by itself

Weights = tuple[float, float, float]


@dataclass(frozen=True)
class TotalError:
    """The expected error of corrected schedules.

    Args:
        products: Mean products of the differences at a step and k steps earlier, (steps, `WINDOW`, layers + 1, layers +
            1), after layers 0..N at the later step on the third axis, and at the earlier one on the last.
        influence: Influence of each step on the final image, (steps,).
        guided: Which steps are guided, (steps,) bool; all alike if None. Where guidance begins, nothing measured
            before serves any more, since the unconditional half lacks it. Where it ends, the record holds the products
            of guided differences alone, so that the steps that carry these on go along lines.
        likeness: How much of the product of two neighbouring steps' errors counts, in [0, 1].
    """

    products: NDArray[np.floating]
    influence: NDArray[np.floating]
    guided: NDArray[np.bool_] | None = None
    likeness: float = 1.0

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.products.shape[2] - 1

    @cached_property
    def guidance_begins(self) -> int:
        """The step above 0 at which guidance begins, 0 if there is none."""
        return 0 if self.guided is None else int((np.diff(self.guided, prepend=self.guided[0]) & self.guided).argmax())

    def is_possible(self, layers: Sequence[int]) -> bool:
        """Return whether corrections exist wherever a schedule needs them, and were recorded.

        Layer 0 comes after a full step, exits come at most `LONGEST_GAP` steps after one, and all layers run where
        guidance begins after a full step.
        """
        full = [step for step, layer in enumerate(layers) if layer == self.depth]
        if 0 in layers and (not full or layers.index(0) < full[0]):
            return False
        if self.depth in layers[: self.guidance_begins] and layers[self.guidance_begins] != self.depth:
            return False
        return all(after - before <= LONGEST_GAP + 1 for before, after in itertools.pairwise([*full, len(layers)]))

    @cached_property
    def _gram(self) -> NDArray[np.floating]:
        """Products of all differences, (steps * (layers + 1), steps * (layers + 1)); 0 if too many steps apart."""
        steps, window, exits, _ = self.products.shape
        gram = np.zeros((steps, exits, steps, exits))
        for step in range(steps):
            for k in range(min(window, step + 1)):
                gram[step, :, step - k] = self.products[step, k]
                gram[step - k, :, step] = self.products[step, k].T
        return gram.reshape(steps * exits, steps * exits)

    def fitted(self, layers: Sequence[int]) -> tuple[float, tuple[Weights, ...]]:
        """Return the least expected error of a schedule, and the weights of its extrapolation at each step.

        Args:
            layers: Exit layers in 0..N, as they are possible.
        """
        exits = self.products.shape[2]
        used, terms, early, on_lines = self._terms(layers)
        gram = self._gram[np.ix_(used, used)]
        own = np.zeros((len(early), len(used)))  # of each early exit, its own difference
        place = {difference: k for k, difference in enumerate(used)}
        for row, step in enumerate(early):
            own[row, place[step * exits + layers[step]]] = np.sqrt(self.influence[step])
        start = np.where(terms.any(2), LINE, (1.0, 0.0, 0.0))  # (early, 3): no slope where there is none to measure
        line = own - np.einsum("et,etu->eu", start, terms)  # errors of lines, (early, used)
        alike = self.likeness ** np.abs(np.subtract.outer(early, early))
        flat = terms.reshape(-1, len(used))
        normal = (flat @ gram @ flat.T) * alike.repeat(3, 0).repeat(3, 1)
        target = (flat @ gram @ line.T).reshape(len(early), 3, len(early))
        target = (target * alike[:, None]).sum(2).reshape(-1)
        pull = PULL * np.diag(normal) + np.where(on_lines, 1e12, 1e-12).repeat(3)
        change = np.linalg.solve(normal + np.diag(pull), target).reshape(-1, 3)
        left = line - np.einsum("et,etu->eu", change, terms)
        error = float(((left @ gram @ left.T) * alike).sum())
        weights = [LINE] * len(layers)
        for step, row in zip(early, (start + change).round(4).tolist(), strict=True):
            weights[step] = tuple(row)
        return max(error, 0.0), tuple(weights)

    def _terms(self, layers: Sequence[int]) -> tuple[list[int], NDArray[np.floating], list[int], list[bool]]:
        """Describe the early exits of a schedule.

        Returns:
            The differences that matter, (used,); the terms over them, (early, 3, used); the early steps; and which of
            them have to go along lines, (early,).
        """
        exits = self.products.shape[2]
        full: list[int] = []
        rows: list[dict[int, float]] = []
        early, used, on_lines = [], set(), []
        for step, layer in enumerate(layers):
            if layer == exits - 1:
                full.append(step)
                continue
            early.append(step)
            used.add(step * exits + layer)
            felt = float(np.sqrt(self.influence[step]))
            serving = [k for k in full[-3:] if k >= self.guidance_begins or step < self.guidance_begins][::-1]
            on_lines.append(self.guided is not None and any(self.guided[k] != self.guided[step] for k in serving))
            gaps = [a - b for a, b in zip([step, *serving], serving, strict=False)]
            for term in _newton(*gaps, *[0] * (3 - len(gaps))) if serving else [()] * 3:
                rows.append({k * exits + layer: felt * c for k, c in zip(serving, term, strict=False)})
            used.update(rows[-3])
        order = sorted(used)
        place = {difference: k for k, difference in enumerate(order)}
        terms = np.zeros((len(rows), len(order)))
        for row, by_difference in enumerate(rows):
            for difference, value in by_difference.items():
                terms[row, place[difference]] = value
        return order, terms.reshape(len(early), 3, len(order)), early, on_lines


@cache
def _newton(gap: int, before: int, earlier: int) -> list[list[float]]:
    found: list[list[float]] = newton_terms(*torch.tensor([gap, before, earlier])).tolist()
    return found
