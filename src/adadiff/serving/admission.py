"""Whether a request is taken: it has to fit the model, and must not wait for a slot for too long."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adadiff.serving.conditions import Condition, ConditionEncoder
from adadiff.serving.plans import Plans, PreparedPlan
from adadiff.serving.requests import ImageRequest, Overloaded
from adadiff.utils.errors import InputError

MARGIN = 1.5
"""How much longer a wait may become than estimated: a flood of requests slows the machine down while they wait."""


def prepare(request: ImageRequest, plans: Plans, encoder: ConditionEncoder) -> tuple[PreparedPlan, Condition]:
    """Check a request against the model and prepare it; no model is run.

    Raises:
        InputError: If it does not fit the model, or its policy looks at the whole batch.
    """
    if not request.seeds or any(seed < 0 for seed in request.seeds) or request.previews < 0:
        raise InputError("a request has one seed of at least 0 for each image, and no fewer than 0 previews")
    prepared = plans.prepare(request.plan)
    guided = request.plan.guidance.scale > 1
    condition = Condition(request.class_label, request.prompt, request.negative_prompt, guided)
    encoder.check(condition)
    return prepared, condition


@dataclass(frozen=True)
class Outlook:
    """How long further images would wait for a slot, as far as is known.

    Running samples share the machine evenly, and a slot that becomes free is taken by the next image that waits.

    Args:
        ends: For each slot, the work that is done before it can take another image, in seconds of full calls; 0 for a
            free one.
        waiting: Images that wait.
        correction: Seconds that a second of work takes in fact.

    Examples:
        >>> outlook = Outlook.of([1.0, 3.0], slots=2)  # by the time that one ends, either has done 1
        >>> outlook.seconds, outlook.after([5.0]).seconds
        (2.0, 6.0)
        >>> Outlook.of([1.0], slots=2).seconds
        0.0
    """

    ends: tuple[float, ...]
    waiting: int = 0
    correction: float = 1.0

    @classmethod
    def of(cls, running: Sequence[float], slots: int, correction: float = 1.0) -> Outlook:
        """Return the outlook where samples run that have the given work left, at most `slots`, and none waits."""
        return cls((*(slots * work for work in running), *[0.0] * (slots - len(running))), correction=correction)

    @property
    def seconds(self) -> float:
        """Seconds until another image gets a slot."""
        return self.correction * min(self.ends)

    def after(self, images: Sequence[float]) -> Outlook:
        """Return the outlook once images of the given work have come too, in this order."""
        ends, waiting = list(self.ends), self.waiting
        heapq.heapify(ends)
        for work in images:
            waiting += ends[0] > 0
            heapq.heapreplace(ends, ends[0] + len(ends) * work)
        return replace(self, ends=tuple(ends), waiting=waiting)

    def admit(self, images: Sequence[float], max_wait: float) -> None:
        """Raise Overloaded if a request's images, of the given work, might wait for longer than that.

        A request may be larger if no others wait, as it could never be served otherwise.
        """
        most = max_wait / MARGIN
        if self.seconds > most or (self.waiting and self.after(images[1:]).seconds > most):
            raise Overloaded(self.seconds)
