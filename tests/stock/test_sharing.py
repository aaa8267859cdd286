"""Transformers shared between pipelines, threads and loops: an error where the image would be wrong."""

from __future__ import annotations

import copy
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


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_pipeline_that_drives_the_transformer_with_another_scheduler_is_an_error(name: str):
    tiny = build(pixart, scheduler=getattr(diffusers, name)())
    other = sibling(tiny, getattr(diffusers, name)())
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


def test_a_copy_of_the_pipeline_is_disabled_on_its_own():
    tiny = build("flux")
    stock = tiny()
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    other = TinyPipeline(copy.deepcopy(tiny.pipe), tiny.arguments)
    with pytest.raises(InputError):
        other()
    adadiff.enable(other.pipe, schedule(other))
    assert torch.equal(other(), first)
    adadiff.disable(other.pipe)
    assert torch.equal(other(), stock)
    assert torch.equal(tiny(), first)


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


@pytest.mark.parametrize("where", ["between the calls", "within a call"])
def test_two_threads_at_once_are_an_error_in_both(where: str):
    tiny = build(pixart)
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    raised: list[BaseException] = []

    def interrupt(*args: Any) -> Any:
        if len(raised) == 0:
            raised.append(ValueError())  # once
            raised.extend(in_thread(tiny))
        return args[-1] if where == "between the calls" else None

    if where == "between the calls":
        callback = {"callback": lambda step, *args: interrupt() if step == 2 else None, "callback_steps": 1}
        handle = None
    else:
        handle, callback = tiny.transformer.transformer_blocks[1].register_forward_pre_hook(interrupt), {}
    with pytest.raises((InputError, IndexError)):
        tiny(**callback)
    if handle is not None:
        handle.remove()
        assert [str(error) for error in raised[1:]] == [
            "two threads use one pipeline at once: give each thread a pipeline and transformer of its own"
        ]
    assert torch.equal(tiny(), first)
    assert in_thread(lambda: torch.testing.assert_close(tiny(), first, rtol=0, atol=0)) == []


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
