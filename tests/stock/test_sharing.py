"""Transformers shared between pipelines, threads and loops: an error where the image would be wrong."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import diffusers
import pytest
import torch

import adadiff
from adadiff import InputError
from tests.stock.calls import first_call, schedule
from tests.stock.tiny import TinyPipeline, build, pixart


def sibling(tiny: TinyPipeline, scheduler: Any) -> TinyPipeline:
    """Another pipeline with the same transformer."""
    pipe = type(tiny.pipe)(**{**tiny.pipe.components, "scheduler": scheduler})
    return TinyPipeline(pipe, tiny.arguments)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("pixart", "DDIMScheduler"),
        ("pixart", "DPMSolverMultistepScheduler"),
        ("pixart", "EulerDiscreteScheduler"),
        ("flux", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_pipeline_that_drives_the_transformer_with_another_scheduler_is_an_error(family: str, scheduler: str):
    tiny = build(family)
    tiny.pipe.scheduler = getattr(diffusers, scheduler)()
    other = sibling(tiny, getattr(diffusers, scheduler)())
    adadiff.enable(tiny.pipe, schedule(tiny))
    with pytest.raises(InputError, match="the transformer is shared with a pipeline"):
        adadiff.enable(other.pipe, schedule(other))
    with pytest.raises(InputError, match="another pipeline, or a loop of your own, uses the transformer"):
        other()  # the first has not been called
    first = tiny()
    with pytest.raises(InputError, match="another pipeline, or a loop of your own, uses the transformer"):
        other(num_inference_steps=7)  # the first has finished
    assert torch.equal(tiny(), first)
    adadiff.disable(tiny.pipe)
    other()


def test_pipelines_that_share_a_scheduler_take_turns():
    tiny = build(pixart)
    other = sibling(tiny, tiny.pipe.scheduler)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    assert torch.equal(other(), first)
    adadiff.enable(other.pipe, schedule(other))
    assert torch.equal(tiny(), first)
    adadiff.disable(other.pipe)
    assert not torch.equal(tiny(), first)


def test_a_pipeline_that_is_gone_is_named():
    tiny = build(pixart)
    other = sibling(tiny, tiny.pipe.scheduler)
    adadiff.enable(other.pipe, schedule(other))
    del other
    with pytest.raises(InputError, match="the pipeline that adadiff was enabled for no longer exists"):
        tiny()
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()


def pickled(pipe: Any) -> Any:
    """A copy of a pipeline by way of a file of its transformer."""
    file = io.BytesIO()
    torch.save(pipe.transformer, file)
    file.seek(0)
    transformer = torch.load(file, weights_only=False)
    return type(pipe)(**{**pipe.components, "transformer": transformer, "scheduler": copy.deepcopy(pipe.scheduler)})


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_copy_of_an_enabled_pipeline_is_enabled_and_disabled_on_its_own(name: str, copied: Any):
    tiny = build(name)
    stock = tiny()
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    other = TinyPipeline(copied(tiny.pipe), tiny.arguments)
    with pytest.raises(InputError, match="the pipeline that adadiff was enabled for no longer exists"):
        other()
    adadiff.enable(other.pipe, schedule(other))
    assert torch.equal(other(), first)
    with torch.no_grad():
        other.transformer.proj_out.weight.mul_(2)
    assert not torch.equal(other(), first)
    assert torch.equal(tiny(), first)
    adadiff.disable(other.pipe)
    assert not torch.equal(other(), stock)
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), stock)


def in_thread(work: Any) -> list[BaseException]:
    """Run work in a thread to its end; what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    return raised


TWO_THREADS = "two threads use one pipeline at once"


def test_a_thread_that_interrupts_a_call_is_an_error_in_both():
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    raised: list[BaseException] = []

    def interrupt(*args: Any) -> None:
        handle.remove()
        raised.extend(in_thread(tiny))

    handle = tiny.transformer.transformer_blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(InputError, match=TWO_THREADS):
        tiny()
    assert [type(error) for error in raised] == [InputError]
    assert TWO_THREADS in str(raised[0])
    assert torch.equal(tiny(), first)
    assert in_thread(lambda: torch.testing.assert_close(tiny(), first, rtol=0, atol=0)) == []


def test_threads_that_take_turns_step_by_step_are_an_error_in_both():
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    other_began, this_stopped, raised = threading.Event(), threading.Event(), []

    def in_other(step: int, *args: Any) -> None:
        other_began.set()
        assert this_stopped.wait(60)

    def in_this(step: int, *args: Any) -> None:
        if step == 1:
            other.start()
            assert other_began.wait(60)

    other = threading.Thread(target=lambda: raised.extend(in_thread(lambda: tiny(callback=in_other, callback_steps=1))))
    with pytest.raises(InputError, match=TWO_THREADS):
        tiny(callback=in_this, callback_steps=1)
    this_stopped.set()
    other.join(60)
    assert [type(error) for error in raised] == [InputError]
    assert torch.equal(tiny(), first)


def test_a_sampling_within_another_is_right_and_ends_the_other():
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first, inner = tiny(), []
    with pytest.raises(InputError, match="the scheduler's last step is over"):
        tiny(callback=lambda step, *args: inner.append(tiny()) if step == 1 else None, callback_steps=1)
    assert torch.equal(inner[0], first)


def test_a_call_cut_off_in_a_thread_that_has_ended_is_forgotten():
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()

    def stop(*args: Any) -> None:
        raise SystemExit  # which hooks of torch are not told of

    handle = tiny.transformer.transformer_blocks[0].register_forward_pre_hook(stop)
    assert [type(error) for error in in_thread(tiny)] == [SystemExit]
    handle.remove()
    assert torch.equal(tiny(), first)


def test_a_call_cut_off_in_a_thread_that_goes_on_is_forgotten():
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = tiny.transformer.transformer_blocks[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    handle.remove()
    images: list[Any] = []
    assert in_thread(lambda: images.append(tiny())) == []
    assert torch.equal(images[0], first)


def test_time_steps_of_tokens_or_rows_are_refused():
    tiny = build("pixart")
    args, kwargs = first_call(tiny)
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny.pipe.scheduler.set_timesteps(6)
    rows = len(kwargs["timestep"])
    for timestep, message in [
        (torch.full((rows, 3), 900), "each token has a time step of its own"),
        (torch.arange(rows), "rows have time steps of their own"),
        (None, "without a time step"),
    ]:
        with pytest.raises(InputError, match=message), torch.no_grad():
            tiny.transformer(*args, **{**kwargs, "timestep": timestep})


def test_a_cache_of_diffusers_is_refused():
    tiny = build("flux")
    tiny.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(InputError, match="a cache of diffusers is enabled"):
        adadiff.enable(tiny.pipe, schedule(tiny))
    tiny.transformer.disable_cache()
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    tiny.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(InputError, match="a cache of diffusers is enabled"):
        tiny()
    tiny.transformer.disable_cache()
    assert torch.equal(tiny(), first)
