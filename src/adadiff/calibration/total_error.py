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
        guided: Which steps are guided, (steps,) bool. Where guidance begins, nothing measured before serves any more,
            since the unconditional half lacks it. Where it ends, the record holds the products of guided differences
            alone, so that the steps that carry these on go along lines.
    """

    products: NDArray[np.floating]
    influence: NDArray[np.floating]
    guided: NDArray[np.bool_]

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.products.shape[2] - 1

    @cached_property
    def guidance_begins(self) -> int:
        """The step above 0 at which guidance begins, 0 if there is none."""
        return guidance_start(self.guided)

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

    def fitted(self, layers: Sequence[int], likeness: float) -> tuple[float, tuple[Weights, ...]]:
        """Return the least expected error of a schedule, and the weights of its extrapolation at each step.

        Args:
            layers: Exit layers in 0..N, as they are possible.
            likeness: How much of the product of two neighbouring steps' errors counts, in [0, 1].
        """
        early = [step for step, layer in enumerate(layers) if layer < self.depth]
        own, terms, on_lines, since = self._terms(layers, early)
        used = np.flatnonzero(own.any(0) | terms.any((0, 1)))
        own, terms, gram = own[:, used], terms[:, :, used], self._gram[np.ix_(used, used)]
        start = np.where(terms.any(2), LINE, (1.0, 0.0, 0.0))  # (early, 3): no slope where there is none to measure
        line = own - np.einsum("et,etu->eu", start, terms)  # errors of lines, (early, used)
        spans = np.maximum.outer(early, early) - np.minimum.outer(since, since)
        recorded = spans < self.products.shape[1]  # other pairs of errors, far apart, are taken to be unrelated
        alike = recorded * likeness ** np.abs(np.subtract.outer(early, early))
        flat, alike_terms = terms.reshape(3 * len(early), len(used)), alike.repeat(3, 0)  # (3 * early, used or early)
        projected = flat @ gram
        normal = projected @ flat.T * alike_terms.repeat(3, 1)
        target = (projected @ line.T * alike_terms).sum(1)
        free = np.flatnonzero(~on_lines.repeat(3))
        system = normal + np.diag(PULL * np.diag(normal) + 1e-12)
        change = np.zeros(len(target))
        change[free] = np.linalg.solve(system[np.ix_(free, free)], target[free])
        weights = start + change.reshape(len(early), 3)
        left = own - np.einsum("et,etu->eu", weights, terms)
        error = float(((left @ gram @ left.T) * alike).sum())
        rows = [LINE] * len(layers)
        for step, row in zip(early, weights.round(4).tolist(), strict=True):
            rows[step] = tuple(row)
        return max(error, 0.0), tuple(rows)

    def _terms(
        self, layers: Sequence[int], early: Sequence[int]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_], NDArray[np.integer]]:
        """Write the errors of early exits as combinations of all differences.

        Returns:
            Each exit's own difference, (early, differences); the terms that may be subtracted, (early, 3, differences);
            which exits have to go along lines, (early,); and the first step that each one's error depends on, (early,).
        """
        exits = self.depth + 1
        own, terms = (np.zeros((len(early), *terms, len(self._gram))) for terms in ((), (3,)))
        on_lines, since = np.zeros(len(early), dtype=bool), np.array(early, dtype=int)
        full = [step for step, layer in enumerate(layers) if layer == self.depth]
        for row, step in enumerate(early):
            felt, layer = np.sqrt(self.influence[step]), layers[step]
            own[row, step * exits + layer] = felt
            serving = [k for k in full if k < step and not k < self.guidance_begins <= step][:-4:-1]
            if serving:
                gaps = [after - before for after, before in itertools.pairwise([step, *serving])]
                measured = np.array(serving) * exits + layer
                terms[row][:, measured] = felt * _newton(*gaps, *[0] * (3 - len(gaps)))[:, : len(serving)]
                on_lines[row] = any(self.guided[k] != self.guided[step] for k in serving)
                since[row] = serving[-1]
        return own, terms, on_lines, since


def guidance_start(guided: NDArray[np.bool_]) -> int:
    """Return the step above 0 at which guidance begins; 0 if no step or the first one is guided.

    Args:
        guided: Which steps are guided, (steps,).
    """
    return int((np.diff(guided, prepend=guided[0]) & guided).argmax())


@cache
def _newton(gap: int, before: int, earlier: int) -> NDArray[np.floating]:
    return newton_terms(gap, before, earlier)
