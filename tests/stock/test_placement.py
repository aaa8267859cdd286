"""Offloaded and compiled transformers, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from packaging.version import Version

import adadiff
from adadiff.stock.stored import weights_fingerprint
from adadiff.stock.switch import transformers_of
from tests.stock.calls import numbered, schedule
from tests.stock.tiny import TinyPipeline, build


def offload_groups(tiny: TinyPipeline, **options: Any) -> None:
    """Offload the groups of a transformer; skip the test where this diffusers cannot do so without an accelerator."""
    if Version(diffusers.__version__) < Version("0.36") and torch.accelerator.current_accelerator() is None:
        pytest.skip(f"diffusers {diffusers.__version__} offloads groups with an accelerator only")
    tiny.transformer.enable_group_offload(onload_device=torch.device("cpu"), **options)


OFFLOADS: dict[str, Callable[[TinyPipeline], Any]] = {
    "leaves": lambda tiny: offload_groups(tiny, offload_type="leaf_level"),
    "blocks": lambda tiny: offload_groups(tiny, offload_type="block_level", num_blocks_per_group=2),
    "models": lambda tiny: tiny.pipe.enable_model_cpu_offload(device="cpu"),
}


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("order", ["enabled first", "offloaded first"])
@pytest.mark.parametrize("kind", OFFLOADS)
def test_an_offloaded_model_samples_the_same(kind: str, order: str, name: str):
    tiny = build(name)
    stock = tiny()
    adadiff.enable(tiny.pipe, schedule(tiny))
    wanted, calls = tiny(), adadiff.trace(tiny.pipe).calls
    adadiff.disable(tiny.pipe)
    if order == "enabled first":
        adadiff.enable(tiny.pipe, schedule(tiny))
    OFFLOADS[kind](tiny)
    if order == "offloaded first":
        adadiff.enable(tiny.pipe, schedule(tiny))
    for _ in range(2):
        assert torch.equal(tiny(), wanted)
        assert adadiff.trace(tiny.pipe).calls == calls
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), stock)


def test_an_offloaded_model_is_still_moved_after_disabling():
    tiny = build("flux")
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny.pipe.enable_model_cpu_offload(device="cpu")
    adadiff.disable(tiny.pipe)
    moved = []
    hook = tiny.transformer._hf_hook
    pre_forward = hook.pre_forward
    hook.pre_forward = lambda *args, **kwargs: moved.append(1) or pre_forward(*args, **kwargs)
    tiny()
    assert moved


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_weights_of_groups_on_disk_are_known(kind: str, tmp_path: Path):
    tiny = build("sd3")
    known = weights_fingerprint(transformers_of(tiny.pipe))
    offload_groups(tiny, offload_type=kind, num_blocks_per_group=2, offload_to_disk_path=str(tmp_path))
    for _ in range(2):
        assert weights_fingerprint(transformers_of(tiny.pipe)) == known
        tiny()
    other = build("sd3")
    with torch.no_grad():
        other.transformer.proj_out.weight[0, 0] += 1
    offload_groups(other, offload_type=kind, num_blocks_per_group=2, offload_to_disk_path=str(tmp_path / "other"))
    assert weights_fingerprint(transformers_of(other.pipe)) != known


@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_weights_that_accelerate_moves_layer_by_layer_are_known(name: str, tmp_path: Path):
    tiny = build(name)
    adadiff.enable(tiny.pipe, schedule(tiny))
    wanted, known = tiny(), weights_fingerprint(transformers_of(tiny.pipe))
    accelerate.disk_offload(tiny.transformer, tmp_path, torch.device("cpu"))  # as `enable_sequential_cpu_offload` does
    assert all(each.is_meta for each in tiny.transformer.parameters())
    assert weights_fingerprint(transformers_of(tiny.pipe)) == known
    for _ in range(2):
        assert torch.equal(tiny(), wanted)
        adadiff.enable(tiny.pipe, schedule(tiny))
    other = build(name)
    with torch.no_grad():
        next(iter(other.transformer.parameters())).mul_(2)
    accelerate.cpu_offload(other.transformer, torch.device("cpu"))
    assert weights_fingerprint(transformers_of(other.pipe)) != known


def compile_whole(tiny: TinyPipeline, backend: Any, **options: Any) -> None:
    """Replace the transformer by a compiled one."""
    tiny.pipe.transformer = torch.compile(tiny.pipe.transformer, backend=backend, **options)


def compile_in_place(tiny: TinyPipeline, backend: Any, **options: Any) -> None:
    """Compile the transformer as it is."""
    tiny.transformer.compile(backend=backend, **options)


def compile_blocks(tiny: TinyPipeline, backend: Any, **options: Any) -> None:
    """Compile each block of the transformer."""
    if not hasattr(tiny.transformer, "compile_repeated_blocks"):
        pytest.skip("this diffusers does not compile blocks")
    tiny.transformer.compile_repeated_blocks(backend=backend, **options)


@pytest.mark.parametrize(
    ("how", "order", "fullgraph"),
    [
        (compile_whole, "enabled first", False),
        (compile_whole, "compiled first", True),
        (compile_in_place, "enabled first", False),
        (compile_in_place, "compiled first", False),
        (compile_blocks, "compiled first", True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_compiled_model_samples_the_same_and_is_compiled_once(how: Any, order: str, fullgraph: bool):
    torch._dynamo.reset()
    tiny, graphs = build("flux", double=1, single=2), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    adadiff.enable(tiny.pipe, schedule(tiny))
    wanted = tiny()
    if order == "compiled first":
        adadiff.disable(tiny.pipe)
    how(tiny, backend, fullgraph=fullgraph)
    if order == "compiled first":
        adadiff.enable(tiny.pipe, schedule(tiny))
    torch.testing.assert_close(tiny(), wanted, rtol=1e-5, atol=1e-5)
    made = len(graphs)
    torch.testing.assert_close(tiny(), wanted, rtol=1e-5, atol=1e-5)
    assert 0 < made == len(graphs)
    adadiff.disable(tiny.pipe)
    assert not torch.equal(tiny(), wanted)


def test_as_many_exits_as_there_are_layers_fit_in_a_compiled_model():
    torch._dynamo.reset()
    tiny = build("pixart")
    policy = adadiff.CorrectedScheduleExit((5, 1, 5, 2, 5, 3, 5, 4, 0))  # more graphs than torch keeps by default
    adadiff.enable(tiny.pipe, policy)
    wanted = tiny(num_inference_steps=9)
    compile_whole(tiny, "eager", fullgraph=True)
    torch.testing.assert_close(tiny(num_inference_steps=9), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("how", [compile_whole, compile_in_place, compile_blocks])
def test_compiled_models_are_calibrated_and_adapted_as_others(how: Any):
    torch._dynamo.reset()
    found, errors, graphs = [], [], []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for compiled in (False, True):
        tiny = build("flux", double=1, single=2)
        if compiled:
            how(tiny, backend, fullgraph=True)
        prompts, arguments = numbered(tiny)
        errors.append(adadiff.adapt(tiny.pipe, prompts, samples=2, bins=2, **arguments).errors())
        found.append(adadiff.calibrate(tiny.pipe, prompts, compute=0.6, samples=8, refine=False, **arguments))
    assert found[1].policy.layers == found[0].policy.layers
    assert found[1].checked.compute == pytest.approx(found[0].checked.compute)
    assert found[1].checked.error == pytest.approx(found[0].checked.error, rel=0.01)
    for layer, each in errors[0].items():
        assert errors[1][layer] == pytest.approx(each, rel=0.01)
    assert bool(graphs) == (how is compile_blocks)  # a model compiled as a whole would make a graph for every policy
    assert tiny().isfinite().all()
    assert graphs


@pytest.mark.parametrize("how", [compile_whole, compile_in_place, compile_blocks])
@pytest.mark.parametrize("policy", [adadiff.ThresholdExit(0.05), adadiff.CorrectedScheduleExit((3, 3, 1, 3, 1, 1))])
def test_fitted_exits_work_in_compiled_and_offloaded_models(policy: adadiff.ExitPolicy, how: Any):
    torch._dynamo.reset()
    tiny = build("flux", double=1, single=2)
    prompts, arguments = numbered(tiny)
    adaptation = adadiff.adapt(tiny.pipe, prompts, samples=2, bins=3, **arguments)
    adadiff.enable(tiny.pipe, policy, adaptation=adaptation)
    wanted = tiny()
    assert adadiff.trace(tiny.pipe).layer_fraction < 1
    OFFLOADS["leaves"](tiny)
    torch.testing.assert_close(tiny(), wanted, rtol=1e-5, atol=1e-5)
    adadiff.disable(tiny.pipe)
    tiny = build("flux", double=1, single=2)
    how(tiny, "eager")
    adadiff.enable(tiny.pipe, policy, adaptation=adaptation)
    for _ in range(2):
        torch.testing.assert_close(tiny(), wanted, rtol=1e-5, atol=1e-5)
