"""What the tests of stock pipelines share: schedules, one call's inputs, and its output with fewer layers run."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from adadiff import CorrectedScheduleExit
from adadiff.stock.families import family_of
from adadiff.stock.views import Blocks
from tests.stock.tiny import STEPS, TinyPipeline


def blocks_of(model: nn.Module) -> Blocks:
    """The layers of a stock transformer."""
    model = unwrap_module(model)
    return Blocks(model, family_of(model))


def depth_of(tiny: TinyPipeline) -> int:
    """Number of layers of a pipeline's transformer."""
    return blocks_of(tiny.transformer).depth


def schedule(tiny: TinyPipeline, steps: int = STEPS, layer: int = 2) -> CorrectedScheduleExit:
    """A corrected schedule: all layers at steps 0, 1 and every third one, else `layer`."""
    depth = depth_of(tiny)
    return CorrectedScheduleExit(tuple(depth if step < 2 or step % 3 == 0 else layer for step in range(steps)))


def numbered(tiny: TinyPipeline) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The prompts of a pipeline's two samples, and the other arguments of its call, for sampling by number."""
    arguments = {name: value for name, value in tiny.arguments.items() if name != "output_type"}
    names = [name for name, value in arguments.items() if isinstance(value, (Tensor, list))]
    each = {name: arguments.pop(name) for name in names}
    return [
        {name: value[k : k + 1] if isinstance(value, list) else value[k] for name, value in each.items()}
        for k in range(2)
    ], arguments


def first_call(tiny: TinyPipeline) -> tuple[Any, Any]:
    """Arguments of the first call that the pipeline makes of its transformer."""
    seen: list[Any] = []

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)))

    handle = tiny.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    tiny()
    handle.remove()
    return seen[0]


@torch.no_grad()
def prediction(model: nn.Module, inputs: tuple[Any, Any]) -> list[Tensor]:
    """The tensors that a call of the model returns."""
    args, kwargs = tree_map(lambda leaf: leaf, inputs)  # models take items out of what they are given
    return [leaf for leaf in tree_leaves(model.forward(*args, **kwargs)) if isinstance(leaf, Tensor)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are the same, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def attributes(model: nn.Module) -> dict[str, Any]:
    """All attributes of a model's modules, those that are containers by content."""
    return {
        f"{path}.{name}": dict(value) if isinstance(value, dict) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }
