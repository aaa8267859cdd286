"""Running only some blocks of a transformer, through its own forward pass.

A diffusers transformer loops over one or two lists of blocks. While its forward pass runs, each list is replaced by a
view: whole to `len()`, indexing and `state_dict()`, but the loop sees only the blocks that are to run. What follows the
loop, the model's own norm and projection, so becomes the exit head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adadiff.stock.families import Family

Place = tuple[str, int]
"""Name of a list of blocks, and the position of a block in it."""


class View(nn.ModuleList):
    """Shows a list of blocks whole, except that iterating over it yields only some modules.

    Args:
        whole: The list of blocks.
        run: What iterating yields, by position in the list.
    """

    def __init__(self, whole: nn.ModuleList, run: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.__dict__.update(whole.__dict__)
        self._run = dict(run)
        self._items = tuple(run[place] for place in sorted(run))  # a tuple, so that no module is registered

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._items)

    def __getitem__(self, place: Any) -> Any:
        if not isinstance(place, slice):
            return super().__getitem__(place)
        places = range(len(self))[place]
        part = nn.ModuleList([self._modules[str(k)] for k in places])
        return View(part, {n: self._run[k] for n, k in enumerate(places) if k in self._run})


class Tap(nn.Module):
    """Runs a block and keeps a copy of its output, or repeats that output without running the block.

    Args:
        block: The block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # a tuple, so that it is not registered
        self.output: Any = None
        self.repeats = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.repeats:
            return copied(self.output)  # the loop may add to it in place
        output = self._block[0](*args, **kwargs)
        self.output = copied(output)
        return output

    def forget(self) -> None:
        """Drop the kept output."""
        self.output, self.repeats = None, False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # loops look at attributes of a block, too
            return getattr(self.__dict__["_block"][0], name)


class Taps:
    """The taps of one full forward pass: on the blocks of exit layers, and on the last block of each refiner."""

    def __init__(self) -> None:
        self.exits: dict[int, dict[Place, Tap]] = {}
        self.refiners: dict[Place, Tap] = {}

    def __iter__(self) -> Iterator[Tap]:
        yield from (tap for taps in self.exits.values() for tap in taps.values())
        yield from self.refiners.values()

    def forget(self) -> None:
        """Drop all outputs."""
        for tap in self:
            tap.forget()

    def own(self) -> None:
        """Copy all outputs out of the memory of a CUDA graph, which the next run overwrites."""
        for tap in self:
            tap.output = copied(tap.output)

    def ran(self, layer: int) -> bool:
        """Return whether the blocks of an exit layer ran; skip-layer guidance leaves some out."""
        return all(tap.output is not None for tap in self.exits[layer].values())


class Blocks:
    """The layers of a transformer, and views that run some of them.

    Args:
        model: The transformer.
        family: Which of its lists are the layers.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family
        self._lists: dict[str, nn.ModuleList] = {}
        self._blocks: tuple[nn.Module, ...] = ()
        self.restore()

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return len(self.layers)

    def of_layer(self, layer: int) -> list[nn.Module]:
        """Return the blocks of a layer, 1..N."""
        return [self._lists[name][place] for name, place in self.layers[layer - 1]]

    def refiners(self) -> list[nn.Module]:
        """Return the blocks that run before the layers at every step."""
        return [block for name in self.family.refiners for block in self._lists.get(name, ())]

    def all(self) -> list[nn.Module]:
        """Return the blocks of all layers and refiners."""
        return list(self._blocks)

    def restore(self) -> None:
        """Put the whole lists back in their places, and note blocks that were replaced or removed in the meantime."""
        names = [name for group in self.family.layers for name in group.split("+")]
        for name in (*names, *self.family.refiners):
            current = self.model._modules.get(name)
            if isinstance(current, View):
                self.model._modules[name] = self._lists[name]
            elif isinstance(current, nn.ModuleList):
                self._lists[name] = current
        blocks = tuple(block for blocks in self._lists.values() for block in blocks)
        if blocks != self._blocks:
            self._blocks = blocks
            self.layers = self._find_layers()
            self._views: dict[tuple[int, tuple[int, ...]], tuple[dict[str, View], Taps]] = {}

    def cut(self, layer: int) -> None:
        """Let the next forward pass run the first `layer` layers, 0..N-1, and then the head."""
        self._place(self._made(layer, ())[0])

    def tap(self, exits: Sequence[int], layer: int | None = None) -> Taps:
        """Let the next forward pass run all layers, or the first `layer`, and keep what those of the exits return."""
        views, taps = self._made(self.depth if layer is None else layer, tuple(exits))
        taps.forget()
        self._place(views)
        return taps

    @contextmanager
    def replayed(self, layer: int, taps: Taps, until: int | None = None) -> Iterator[Taps]:
        """Let forward passes start from what the tapped `layer` returned, and run no layer, or those up to `until`.

        The tap stands at all places up to its own, since ControlNets add to the tokens by the number of the block.

        Args:
            layer: The tapped layer.
            taps: What it returned, and the refiners.
            until: The last layer to run; None to run none.

        Yields:
            The taps of what `until` returns, unless it is the last layer, and of the refiners.
        """
        run: dict[str, dict[int, nn.Module]] = {name: {} for name in self._layer_lists()}
        for (name, place), tap in taps.exits[layer].items():
            run[name] = dict.fromkeys(range(place + 1), tap)
        run |= {name: {place: tap} for (name, place), tap in taps.refiners.items() if tap.output is not None}
        following = self._run_on(run, layer, until or layer)
        following.refiners = taps.refiners
        try:
            for tap in taps:
                tap.repeats = tap.output is not None
            self._place({name: View(self._lists[name], modules) for name, modules in run.items()})
            yield following
        finally:
            for tap in taps:
                tap.repeats = False
            self.restore()

    def _run_on(self, run: dict[str, dict[int, nn.Module]], layer: int, until: int) -> Taps:
        """Add the layers after `layer` up to `until` to what runs, the last one tapped if it is an exit."""
        taps = Taps()
        for number in range(layer + 1, until + 1):
            for name, place in self.layers[number - 1]:
                block = run[name][place] = self._lists[name][place]
                if number == until < self.depth:
                    run[name][place] = taps.exits.setdefault(until, {})[name, place] = Tap(block)
        return taps

    def _find_layers(self) -> list[list[Place]]:
        layers = []
        for names in (group.split("+") for group in self.family.layers):
            count = min(len(self._lists[name]) for name in names)
            layers += [[(name, place) for name in names] for place in range(count)]
        return layers

    def _layer_lists(self) -> list[str]:
        return [name for name in self._lists if name not in self.family.refiners]

    def _made(self, layer: int, exits: tuple[int, ...]) -> tuple[dict[str, View], Taps]:
        """Make the views that run the first `layer` layers, with taps on some; the same ones again if made before."""
        if (layer, exits) not in self._views:
            taps = Taps()
            run: dict[str, dict[int, nn.Module]] = {name: {} for name in self._layer_lists()}
            for number, places in enumerate(self.layers[:layer], 1):
                for name, place in places:
                    run[name][place] = self._lists[name][place]
                if number in exits:
                    taps.exits[number] = {(name, place): Tap(run[name][place]) for name, place in places}
                    for (name, place), tap in taps.exits[number].items():
                        run[name][place] = tap
            for name in self.family.refiners:
                if exits and (refiner := self._lists.get(name)):
                    run[name] = dict(enumerate(refiner))
                    last = len(refiner) - 1
                    run[name][last] = taps.refiners[name, last] = Tap(refiner[last])
            views = {name: View(self._lists[name], modules) for name, modules in run.items()}
            self._views[layer, exits] = views, taps
        return self._views[layer, exits]

    def _place(self, views: Mapping[str, View]) -> None:
        self.model._modules.update(views)


def copied(output: Any) -> Any:
    """Copy every tensor of an output."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)


def is_compiled(module: nn.Module) -> bool:
    """Return whether the module's forward pass is compiled as a whole."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
