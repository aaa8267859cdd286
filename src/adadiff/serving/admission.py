"""Whether a request is taken: it has to fit the model, and must not wait for a slot for too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adadiff.serving.conditions import Condition, ConditionEncoder
from adadiff.serving.plans import Plans, PreparedPlan
from adadiff.serving.requests import ImageRequest, Overloaded
from adadiff.utils.errors import InputError


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

    Args:
        free: Slots that images get at once.
        work: Work that is done before an image gets a slot that is taken now, in seconds of full calls.
        waiting: Images that wait.
        correction: Seconds that a second of work takes in fact.

    Examples:
        >>> outlook = Outlook(free=1, work=2.0, correction=1.5)
        >>> outlook.seconds, outlook.after([4.0]).seconds, outlook.after([4.0, 4.0]).seconds
        (3.0, 3.0, 9.0)
    """

    free: int
    work: float = 0.0
    waiting: int = 0
    correction: float = 1.0

    @property
    def seconds(self) -> float:
        """Seconds until another image gets a slot, beyond those that are free."""
        return self.correction * self.work

    def after(self, images: Sequence[float]) -> Outlook:
        """Return the outlook once images of the given work wait too."""
        work = self.work + sum(images[self.free :])
        return replace(self, work=work, free=max(self.free - len(images), 0), waiting=self.waiting + len(images))

    def admit(self, images: Sequence[float], max_wait: float) -> None:
        """Raise Overloaded if a request's images, of the given work, would wait for longer than that.

        A request may be larger if no others wait, as it could never be served otherwise.
        """
        if self.seconds > max_wait or (self.waiting and self.after(images[1:]).seconds > max_wait):
            raise Overloaded(self.seconds)
