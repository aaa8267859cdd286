"""The record of all exits along a stock pipeline's sampling, against shortened copies of the model."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from adadiff import InputError
from adadiff.stock.recorder import ExitRecorder, steps_observed
from adadiff.stock.switch import recording
from tests.stock.calls import depth_of
from tests.stock.test_schedules import shortened
from tests.stock.tiny import STEPS, TinyPipeline, build

EXITS, WINDOW = (1, 3), 3


def recorded(tiny: TinyPipeline) -> ExitRecorder:
    """Record one sampling of a pipeline."""
    recorder = ExitRecorder(EXITS, WINDOW, samples=2)
    with recording(tiny.pipe, recorder):
        tiny()
    return recorder


def seen_by_models(tiny: TinyPipeline, models: list[nn.Module]) -> list[list[Tensor]]:
    """What each of the models predicts at each call that the pipeline makes of its transformer."""
    predicted: list[list[Tensor]] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            predicted.append([model(*args, **kwargs)[0] for model in models])

    handle = tiny.transformer.register_forward_pre_hook(look, with_kwargs=True)
    tiny()
    handle.remove()
    return predicted


@pytest.mark.parametrize(("name", "scale", "calls"), [("sd3", 3.0, 1), ("flux", 2.0, 2)])
def test_products_are_those_of_the_guided_predictions(name: str, scale: float, calls: int):
    tiny = build(name)
    depth = depth_of(tiny)
    full = shortened(tiny.transformer, depth)
    predicted = seen_by_models(tiny, [*(shortened(full, layer) for layer in EXITS), full])
    differences = []
    for step in range(STEPS):
        each = predicted[step * calls : (step + 1) * calls]
        if calls == 1:  # the unconditional half first
            without, with_prompt = zip(*(output.chunk(2) for output in each[0]), strict=True)
        else:  # the conditional call first
            with_prompt, without = each
        guided = [a + scale * (b - a) for a, b in zip(without, with_prompt, strict=True)]
        differences.append(torch.stack([-guided[-1], *(early - guided[-1] for early in guided)]).flatten(2))
    products = recorded(tiny).products
    assert products.shape == (STEPS, WINDOW, len(EXITS) + 2, len(EXITS) + 2, 2)
    for step in range(STEPS):
        for k in range(WINDOW):
            earlier = differences[step - k] if k <= step else torch.zeros_like(differences[step])
            wanted = (differences[step][:, None] * earlier).mean(3)
            torch.testing.assert_close(products[step, k], wanted, rtol=2e-3, atol=1e-6)


def test_predictions_that_nothing_combines_all_count():
    recorder = ExitRecorder(EXITS, WINDOW, samples=2)
    full = torch.arange(8.0).view(2, 2, 2)  # two predictions of two samples
    recorder._predictions = [torch.stack([early, full[k]]) for k, early in enumerate(torch.zeros(2, 2, 2))]
    recorder.end_step(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    wanted = full.square().permute(1, 0, 2).flatten(1).mean(1)  # of each sample, both predictions side by side
    assert torch.allclose(recorder.products[0, 0, 0, 0], wanted)


def test_the_scheduler_is_left_as_it_was():
    tiny = build("pixart")
    stock = tiny()
    recorded(tiny)
    assert "step" not in vars(tiny.pipe.scheduler)
    assert torch.equal(tiny(), stock)


def test_a_copy_of_the_scheduler_takes_its_own_steps_unseen():
    scheduler, seen = diffusers.DDIMScheduler(), []
    plain = scheduler.step
    scheduler.step = lambda *args, **kwargs: plain(*args, **kwargs)  # of the user's own
    own = scheduler.step
    scheduler.set_timesteps(4)
    sample = torch.ones(1, 2)
    with steps_observed(scheduler, seen.append):
        scheduler.step(sample, scheduler.timesteps[0], sample)
    assert scheduler.step is own
    del scheduler.step
    with steps_observed(scheduler, seen.append):
        other = copy.deepcopy(scheduler)
        other.step(sample, other.timesteps[0], sample)
        assert other.step.__self__ is other
    assert len(seen) == 1


def test_rows_that_belong_to_no_sample_are_refused():
    tiny = build("pixart")
    recorder = ExitRecorder(EXITS, WINDOW, samples=3)
    with recording(tiny.pipe, recorder), pytest.raises(InputError, match="predicts 4 rows for 3 samples"):
        tiny()
