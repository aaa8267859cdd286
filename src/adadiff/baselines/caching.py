"""Step caching: outputs of deep layers are reused at later steps, since they change little from step to step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adadiff.baselines.base import Baseline, Inputs, Trajectory, full_output
from adadiff.exits import AdaptiveModel, AdaptiveOutput
from adadiff.utils.errors import InputError


class SkipCaching(Baseline):
    """Caches deep layers at U-ViT's long skips: DeepCache (Ma et al., CVPR 2024, arXiv 2312.00858).

    Every `interval` steps all layers run, and the output of layer N - shallow is cached. At the steps in between, only
    the first and the last `shallow` layers run, connected by their skips; the last ones take the cached output.

    Args:
        model: A trained U-ViT.
        interval: Number of steps from one full run to the next, at least 1; 1 is the full model.
        shallow: Number of layers at each end that always run, 1..N // 2.

    Raises:
        InputError: If the backbone has no long skips, or a number is out of range.
    """

    def __init__(self, model: AdaptiveModel, interval: int, shallow: int = 1) -> None:
        super().__init__(model)
        if model.config.backbone_type != "uvit":
            raise InputError(f"a {model.config.backbone_type} has no long skips to reuse: skip caching needs a uvit")
        if interval < 1:
            raise InputError(f"the interval is {interval}: it must be at least 1 step")
        if not 1 <= shallow <= model.depth // 2:
            raise InputError(f"{shallow} shallow layers on either side: it must be between 1 and {model.depth // 2}")
        self.interval, self.shallow = interval, shallow

    def settings(self) -> dict[str, Any]:
        return {"interval": self.interval, "shallow": self.shallow}

    def flops(self, whole: bool) -> int:
        """Return the FLOPs of one step for one sample: of a full step if `whole`, else of a step between full ones."""
        parts = self.part_flops
        outer = parts.layers[: self.shallow].sum() + parts.layers[self.depth - self.shallow :].sum()
        return parts.full if whole else parts.embed + int(outer + parts.heads[-1])

    def trajectory(self) -> Trajectory:
        return _SkipTrajectory(self)


class _SkipTrajectory(Trajectory):
    def __init__(self, baseline: SkipCaching) -> None:
        self.baseline = baseline
        self.kept: Tensor | None = None

    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        model, shallow = self.baseline.model, self.baseline.shallow
        backbone, depth = model.backbone, model.depth
        batch = len(inputs[0])
        whole = self.kept is None or len(self.kept) != batch or step % self.baseline.interval == 0
        state = backbone.embed(*inputs)
        for i in range(1, (depth - shallow if whole else shallow) + 1):
            state = backbone.layer(i, state)
        if whole:
            self.kept = state.tokens
        else:
            assert self.kept is not None
            state = replace(state, tokens=self.kept)
        for i in range(depth - shallow + 1, depth + 1):
            state = backbone.layer(i, state)
        layers_run = torch.full((batch,), depth if whole else 2 * shallow)
        flops = torch.full((batch,), self.baseline.flops(whole))
        return full_output(model.predict(depth, state), layers_run, flops, depth)


class FirstBlockCaching(Baseline):
    """Reuses the residual of layers 2..N while that of layer 1 changes little: ParaAttention's first-block caching.

    Unlike in ParaAttention, each sample decides for itself. The first layer always runs. If its residual (its output
    minus its input) differs by less than `threshold`, relatively, from that of the sample's last full step, the other
    layers are skipped and their residual of that step is added.

    Args:
        model: A trained model.
        threshold: Relative change, at least 0; 0 is the full model.

    Raises:
        InputError: If the threshold is negative.
    """

    def __init__(self, model: AdaptiveModel, threshold: float) -> None:
        super().__init__(model)
        if not threshold >= 0:
            raise InputError(f"the threshold is {threshold}: it must be at least 0")
        self.threshold = threshold

    def settings(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def trajectory(self) -> Trajectory:
        return _FirstBlockTrajectory(self)


class _FirstBlockTrajectory(Trajectory):
    def __init__(self, baseline: FirstBlockCaching) -> None:
        self.baseline = baseline
        self.first: Tensor | None = None
        self.rest: Tensor | None = None

    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        model = self.baseline.model
        embedded = model.backbone.embed(*inputs)
        state = model.backbone.layer(1, embedded)
        added = state.tokens - embedded.tokens
        stale = self._stale(added)
        if tied_halves:
            stale = stale.unflatten(0, (2, -1)).any(0).repeat(2)
        if self.first is None or self.rest is None or len(self.first) != len(added):
            self.first, self.rest = torch.empty_like(added), torch.empty_like(added)
        where = stale.nonzero().squeeze(1)
        if len(where):
            deeper = state.select(where)
            for i in range(2, model.depth + 1):
                deeper = model.backbone.layer(i, deeper)
            self.first[where], self.rest[where] = added[where], deeper.tokens - state.tokens[where]
        prediction = model.predict(model.depth, replace(state, tokens=state.tokens + self.rest))
        parts, ran = model.part_flops, stale.cpu()
        reused = parts.embed + int(parts.layers[0] + parts.heads[-1])
        return full_output(
            prediction, torch.where(ran, model.depth, 1), torch.where(ran, parts.full, reused), model.depth
        )

    def _stale(self, added: Tensor) -> Tensor:
        """Return which samples must run all layers, (batch,) bool."""
        if self.first is None or len(self.first) != len(added):
            return torch.ones(len(added), dtype=torch.bool, device=added.device)
        change = (added - self.first).abs().float().mean((1, 2)) / self.first.abs().float().mean((1, 2))
        return change >= self.baseline.threshold
