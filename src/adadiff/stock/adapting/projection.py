"""The last linear map of a stock transformer, which turns normed tokens into predictions: where fitted exits attach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adadiff.stock.hooks import TransformerHooks
from adadiff.stock.views import Blocks
from adadiff.utils.errors import InputError


class Projection(nn.Module):
    """Runs a linear map, keeps what it reads and returns, and adds the output of a fitted head if one is set.

    While the model's forward pass runs, it stands in the place of the linear map, with the same parameters: after a
    call that Ctrl-C cut off it stands there until the next one, and the model's `state_dict()` is whole all the same.

    Args:
        model: The transformer.
        name: Name of the linear map in it.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        parent, _, self._attribute = name.rpartition(".")
        self._parent = (model.get_submodule(parent),)  # in tuples, so that they are not registered
        self._linear = (model.get_submodule(name),)
        for shared in ("_parameters", "_buffers", "_modules"):
            self.__dict__[shared] = self._linear[0].__dict__[shared]
        self.head: Tensor | None = None
        self.forget()

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self._linear[0](tokens, *args, **kwargs)
        self.tokens, self.output = tokens, output
        return output if self.head is None else output + applied(self.head, tokens).to(output.dtype)

    def forget(self) -> None:
        """Drop what was kept."""
        self.tokens, self.output = torch.empty(0), torch.empty(0)

    @contextmanager
    def fitted(self, head: Tensor | None) -> Iterator[None]:
        """Add the output of a head, (out, width + 1), to that of the linear map within the block."""
        before, self.head = self.head, head
        try:
            yield
        finally:
            self.head = before

    def place(self) -> None:
        """Put this in the place of the linear map."""
        self._parent[0]._modules[self._attribute] = self

    def restore(self) -> None:
        """Put the linear map back in its place."""
        self.head = None
        self.forget()
        if self._parent[0]._modules.get(self._attribute) is self:
            self._parent[0]._modules[self._attribute] = self._linear[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # forward passes look at the type of the weights, too
            return getattr(self.__dict__["_linear"][0], name)


class ProjectionHooks(TransformerHooks):
    """Runs a transformer's calls with its last linear map in sight."""

    projection: Projection | None = None

    @torch.compiler.disable
    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._restore()  # a call that was cut off may have left it in place
        super().before(module, args, kwargs)

    @torch.compiler.disable
    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        try:
            return super().after(module, args, kwargs, output)
        finally:
            self._restore()

    def remove(self) -> None:
        self._restore()
        super().remove()

    def _restore(self) -> None:
        if self.projection is not None:
            self.projection.restore()


def applied(head: Tensor, tokens: Tensor) -> Tensor:
    """Return a linear map of tokens, (..., out) float32.

    Args:
        head: Weights, and biases in the last column, (out, width + 1) float32.
        tokens: Tokens, (..., width).
    """
    head = head.to(tokens.device)
    return functional.linear(tokens.float(), head[:, :-1], head[:, -1])


@torch.no_grad()
def find_projection(module: nn.Module, blocks: Blocks, args: Any, kwargs: Any) -> str:
    """Return the name of the linear map that a forward pass calls last, after its layers.

    Args:
        module: The transformer, whose forward pass runs once.
        blocks: Its layers.
        args: Arguments of the call.
        kwargs: Arguments by name.

    Raises:
        InputError: If the layers are not followed by one.
    """
    inside = {part for block in blocks.all() for part in block.modules()}
    last = blocks.of_layer(blocks.depth)[-1]
    called: list[str] = []
    with ExitStack() as hooks:
        for name, part in blocks.model.named_modules():
            if isinstance(part, nn.Linear) and part not in inside and "lora_" not in name:
                hooks.callback(part.register_forward_hook(lambda *_, name=name: called.append(name)).remove)
        hooks.callback(last.register_forward_hook(lambda *_: called.clear()).remove)
        module.forward(*args, **kwargs)
    if not called:
        raise InputError(f"{type(blocks.model).__name__} has no linear map after its layers to fit exit heads for")
    return called[-1].removesuffix(".base_layer")
