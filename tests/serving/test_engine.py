"""The engine under traffic: every image is the one sampled alone, and failures stay where they belong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from adadiff import AdaDiffPipeline, BatchMeanExit, NeverExit, ScheduleExit
from adadiff.runtime import Inputs
from adadiff.sampling import Conditions, Guidance, SamplingPlan, sample_seeded
from adadiff.serving.engine import Engine
from adadiff.serving.requests import (
    STOPPED,
    Event,
    Failed,
    Finished,
    ImageRequest,
    Overloaded,
    Preview,
    Running,
    Stopped,
)
from adadiff.utils.errors import InputError
from tests.serving.traffic import (
    DEPTH,
    PATIENCE,
    Gate,
    Listener,
    alone,
    class_pipeline,
    corrected,
    schedule_plans,
    watched,
)

OWL = 2
FULL = SamplingPlan(4, NeverExit(), Guidance(2.0), "ddim")


Starter = Callable[..., Engine]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts engines, and stops them after the test."""
    engines: list[Engine] = []

    def started(pipeline: AdaDiffPipeline | None = None, **options: Any) -> Engine:
        engine = Engine(pipeline or class_pipeline(), **{"max_wait": 1e6, **options})
        engines.append(engine)
        engine.start()
        return engine

    yield started
    for engine in engines:
        engine.stop(0)


def submit(engine: Engine, *seeds: int, plan: SamplingPlan = FULL, label: int = 0, **more: Any) -> tuple[Any, Listener]:
    listener = Listener(len(seeds))
    return engine.submit(ImageRequest(seeds, plan, label, **more), listener), listener


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_images_under_random_traffic_are_those_sampled_alone(seed: int, start: Starter) -> None:
    source, pipeline = random.Random(seed), class_pipeline()
    engine = start(pipeline, slots=source.choice([5, 9]), width=source.choice([3, 8]))
    plans, asked, cancelled = schedule_plans(), [], []
    for number in range(16):
        seeds, label = tuple(source.sample(range(50), source.randint(1, 3))), source.randrange(3)
        ticket, listener = submit(engine, *seeds, plan=source.choice(plans), label=label)
        if source.random() < 0.2:
            engine.cancel(ticket)
            cancelled.append((listener, len(listener.events)))
        else:
            asked.append((ticket.request, listener))
        if number % 5 == 4:
            source.choice(asked)[1].wait()  # so that some come while others are part of the way
    for request, listener in asked:
        for image, finished in listener.wait().items():
            pixels, exits, flops = alone(pipeline, request.plan, request.seeds[image], request.class_label)
            assert isinstance(finished, Finished)
            torch.testing.assert_close(finished.pixels, pixels, atol=1e-5, rtol=0)
            assert (finished.exit_layers, finished.flops) == (exits, flops)
    assert all(len(listener.events) == before for listener, before in cancelled)
    engine.stop(PATIENCE)
    assert (engine.state.running, engine.state.waiting) == ((), 0)


def test_alone_on_the_engine_the_image_is_the_same_to_the_bit(start: Starter) -> None:
    pipeline, plan = class_pipeline(), SamplingPlan(7, corrected(7), Guidance(3.0), "dpm-solver++")
    (finished,) = submit(start(pipeline), 11, plan=plan, label=1)[1].wait().values()
    assert isinstance(finished, Finished)
    assert torch.equal(finished.pixels, alone(pipeline, plan, 11, 1)[0])


def test_prompts_are_rows_of_their_own(start: Starter, text_pipeline: AdaDiffPipeline) -> None:
    plan = SamplingPlan(5, corrected(5), Guidance(3.0), "ddim")
    engine = start(text_pipeline)
    texts = [("a red apple", None), ("two owls", "blue"), ("", None)]
    listeners = [Listener(1) for _ in texts]
    for listener, (prompt, negative) in zip(listeners, texts, strict=True):
        engine.submit(ImageRequest((3,), plan, prompt=prompt, negative_prompt=negative), listener)
    for listener, (prompt, negative) in zip(listeners, texts, strict=True):
        (finished,) = listener.wait().values()
        conditions = Conditions(prompts=(prompt,), negative_prompt=negative or "", guidance=plan.guidance)
        expected = sample_seeded(text_pipeline.with_plan(plan), [0], 5, plan.policy, 3, conditions)
        assert isinstance(finished, Finished)
        torch.testing.assert_close(finished.pixels, expected.images[0], atol=1e-5, rtol=0)


def test_previews_are_evenly_spaced_and_approach_the_image(start: Starter) -> None:
    plan = SamplingPlan(12, NeverExit(), Guidance(2.0), "dpm-solver++")
    _, listener = submit(start(), 1, 2, plan=plan, previews=3)
    ended = listener.wait()
    for image in (0, 1):
        own = [event for event in listener.events if event.image == image]
        previews = [event for event in own if isinstance(event, Preview)]
        assert [(preview.step, preview.steps) for preview in previews] == [(3, 12), (6, 12), (9, 12)]
        assert own[-1] is ended[image]
        final = own[-1]
        assert isinstance(final, Finished)
        errors = [float((preview.pixels - final.pixels).abs().mean()) for preview in previews]
        assert errors[-1] < errors[0]


def test_totals_count_every_layer_once(start: Starter) -> None:
    engine, plan = start(), SamplingPlan(4, ScheduleExit((5, 2, 1, 5)), Guidance(2.0), "ddim")
    _, listener = submit(engine, 1, 2, 3, plan=plan)
    ended = listener.wait()
    engine.stop(PATIENCE)
    state = engine.state
    assert state.images_done == 3
    assert (state.layers_run, state.layers_full) == (3 * 2 * 13, 3 * 2 * 4 * DEPTH)
    assert state.ticks >= 4
    assert sum(state.batches.values()) == state.ticks
    assert sum(rows * calls for (_, rows), calls in state.batches.items()) == 3 * 2 * 4
    assert {layers for layers, _ in state.batches} <= {5, 2, 1}
    assert state.images_per_second > 0
    full = engine.pipeline.transformer.part_flops.full
    assert all(isinstance(image, Finished) and image.full_flops == 2 * 4 * full for image in ended.values())


# Failures -------------------------------------------------------------------------------------------------------------


def test_nan_fails_its_own_image_alone(start: Starter) -> None:
    def spoil(inputs: Inputs, sample: torch.Tensor) -> None:
        sample[inputs.conditions["class_labels"] == OWL] = torch.nan

    engine = start(watched(after=spoil))
    listeners = [submit(engine, number, plan=plan, label=1)[1] for number, plan in enumerate(schedule_plans())]
    spoilt = submit(engine, 7, 8, label=OWL)[1].wait()
    assert all(isinstance(image, Failed) and "NaN" in image.message for image in spoilt.values())
    sound = class_pipeline()
    for number, (plan, listener) in enumerate(zip(schedule_plans(), listeners, strict=True)):
        (finished,) = listener.wait().values()
        assert isinstance(finished, Finished)
        torch.testing.assert_close(finished.pixels, alone(sound, plan, number, 1)[0], atol=1e-5, rtol=0)
    assert engine.state.alive


def test_failure_of_the_engine_fails_all_requests_at_once(start: Starter) -> None:
    def fail(inputs: Inputs) -> None:
        if (inputs.conditions["class_labels"] == OWL).any():
            raise RuntimeError("the device is gone")

    engine = start(watched(fail), slots=10)  # the last one begins at once, too
    listeners = [submit(engine, 1, 2, 3, plan=SamplingPlan(900, scheduler="ddim"), label=1)[1] for _ in range(3)]
    submit(engine, 4, plan=SamplingPlan(2), label=OWL)
    for listener in listeners:
        failed = listener.wait()
        assert all(isinstance(image, Failed) and "the device is gone" in image.message for image in failed.values())
        assert {image.cause for image in failed.values()} == {"engine"}
    state = engine.state
    assert (state.alive, state.ready, state.running, state.waiting) == (False, False, (), 0)
    with pytest.raises(Stopped):
        submit(engine, 1)
    engine.stop(PATIENCE)  # returns at once


def test_text_that_cannot_be_encoded_fails_its_request_alone(start: Starter, text_pipeline: AdaDiffPipeline) -> None:
    encoder: Any = text_pipeline.text_encoder
    encode = encoder.encode

    def encode_unless_cursed(captions: list[str]) -> torch.Tensor:
        if "curse" in captions:
            raise RuntimeError("no such glyph")
        return encode(captions)

    encoder.encode = encode_unless_cursed
    engine, cursed, sound = start(text_pipeline), Listener(2), Listener(1)
    engine.submit(ImageRequest((1, 2), SamplingPlan(3), prompt="curse"), cursed)
    engine.submit(ImageRequest((1,), SamplingPlan(3), prompt="bless"), sound)
    assert cursed.wait() == {image: Failed(image, "no such glyph") for image in (0, 1)}
    assert isinstance(sound.wait()[0], Finished)


def test_listener_that_raises_loses_its_request_alone(start: Starter) -> None:
    def broken(event: Event) -> None:
        raise KeyError("gone")

    engine = start()
    engine.submit(ImageRequest((1, 2), FULL, 0), broken)
    assert isinstance(submit(engine, 3)[1].wait()[0], Finished)
    engine.stop(PATIENCE)
    assert engine.state.running == ()


# Commands -------------------------------------------------------------------------------------------------------------


def test_cancelled_request_gives_its_slots_to_others(start: Starter) -> None:
    gate = Gate()
    engine = start(watched(gate), slots=2)
    gate.close()
    ticket, gone = submit(engine, 1, 2, 3, plan=SamplingPlan(900, scheduler="ddim"), label=1)
    assert gate.reached.wait(PATIENCE)
    _, listener = submit(engine, 4)
    engine.cancel(ticket)
    gate.opened.set()
    assert isinstance(listener.wait()[0], Finished)  # 900 steps would take far longer
    engine.stop(PATIENCE)
    assert gone.events == []
    assert engine.state.images_done == 1
    assert engine.state.ticks <= 1 + 4


def test_overload_is_refused_and_told_when_to_come_again(start: Starter) -> None:
    gate = Gate()
    engine = start(watched(gate), slots=4, max_wait=1e-6)
    gate.close()
    _, first = submit(engine, 1, 2)
    assert gate.reached.wait(PATIENCE)
    _, second = submit(engine, 3, 4, 5)  # two find a slot
    with pytest.raises(Overloaded) as refused:
        submit(engine, 6)
    state = engine.state
    gate.opened.set()
    assert refused.value.retry_after > 0
    assert (state.rejected, state.waiting, len(state.running)) == (1, 3, 2)
    first.wait()
    second.wait()
    engine.stop(PATIENCE)
    assert engine.state.images_done == 5


def test_stop_lets_accepted_requests_finish(start: Starter) -> None:
    engine = start(slots=2)
    listeners = [submit(engine, 1, 2, 3)[1] for _ in range(3)]
    engine.stop(PATIENCE)
    assert all(isinstance(image, Finished) for listener in listeners for image in listener.wait().values())
    assert not engine.state.alive
    with pytest.raises(Stopped):
        submit(engine, 1)


def test_stop_without_drain_fails_what_is_left(start: Starter) -> None:
    engine = start(slots=2)
    _, listener = submit(engine, 1, 2, 3, plan=SamplingPlan(900, scheduler="ddim"))
    engine.stop(0)
    assert listener.wait() == {image: Failed(image, STOPPED, "stopped") for image in range(3)}


def test_state_shows_who_runs(start: Starter) -> None:
    gate = Gate()
    engine = start(watched(gate), slots=2)
    assert engine.state.ready
    gate.close()
    ticket, listener = submit(engine, 1, 2, 3)
    assert gate.reached.wait(PATIENCE)
    state = engine.state
    gate.opened.set()
    steps = FULL.steps
    assert set(state.running) == {Running(ticket.number, image, 0, steps, DEPTH, ran=False) for image in (0, 1)}
    assert (state.slots, state.waiting, state.images_done) == (2, 1, 0)
    listener.wait()
    engine.stop(PATIENCE)
    state = engine.state
    assert (state.running, state.waiting, state.images_done, state.rows_of_last_tick) == ((), 0, 3, 2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ImageRequest((1,), SamplingPlan(4, BatchMeanExit(0.1)), 0), "looks at the whole batch"),
        (ImageRequest((1,), SamplingPlan(4, ScheduleExit((5, 5))), 0), "schedule has 2 exit layers"),
        (ImageRequest((1,), FULL, "fish"), "fish"),
        (ImageRequest((1,), FULL), "needs a class label"),
        (ImageRequest((1,), FULL, 0, prompt="a cat"), "takes no prompts"),
        (ImageRequest((), FULL, 0), "one seed"),
        (ImageRequest((-1,), FULL, 0), "one seed"),
    ],
)
def test_requests_that_do_not_fit_are_refused(request_: ImageRequest, message: str, start: Starter) -> None:
    engine = start()
    with pytest.raises(InputError, match=message):
        engine.submit(request_, Listener(1))
    assert engine.state.waiting == 0


def test_engine_takes_no_requests_before_its_start() -> None:
    engine = Engine(class_pipeline())
    with pytest.raises(Stopped):
        submit(engine, 1)
    engine.stop(0)


@pytest.mark.parametrize("options", [{"slots": 0}, {"width": 0}, {"max_wait": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        Engine(class_pipeline(), **options)
