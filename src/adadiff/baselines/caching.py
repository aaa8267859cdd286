"""Step caching: outputs of deep layers are reused at later steps, since they change little from step to step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adadiff.baselines.base import Baseline, BaselineSession
from adadiff.exits import AdaptiveModel
from adadiff.runtime import Inputs, any_tied
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

    Examples:
        >>> from adadiff import AdaDiffPipeline
        >>> pipe = AdaDiffPipeline.from_pretrained("digits")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> caching = pipe.with_denoiser(SkipCaching(pipe.transformer, interval=2))
        >>> caching(num_inference_steps=4, tau=0).trace.exit_layers.flatten()
        tensor([17,  2, 17,  2])
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

    def session(self, rows: int) -> SkipCachingSession:
        """Begin samplings: return a session of `rows` rows whose first step runs all layers."""
        return SkipCachingSession(self, rows)


class SkipCachingSession(BaselineSession):
    """Remembers the output of layer N - shallow of each row's last full step."""

    denoiser: SkipCaching

    def run(self, inputs: Inputs, steps: Tensor, ties: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        baseline = self.denoiser
        cached = self.memory.tensor("cached", (), torch.bool)  # (batch,)
        whole = any_tied(~cached | (steps % baseline.interval == 0), ties)
        sample = torch.empty_like(inputs.sample)
        for full in (True, False):
            rows = (whole == full).nonzero().squeeze(1)
            if len(rows):
                places = rows.to(sample.device)
                sample[places] = self._run(inputs.select(places), places, full)
        cached |= whole
        depth, few = baseline.depth, 2 * baseline.shallow
        layers_run = torch.where(whole, depth, few)
        return sample, layers_run, torch.where(whole, baseline.flops(whole=True), baseline.flops(whole=False))

    def _run(self, inputs: Inputs, places: Tensor, whole: bool) -> Tensor:
        """Run all layers and cache, or the outer ones with what was cached; `places` are the rows' positions."""
        model, shallow = self.denoiser.model, self.denoiser.shallow
        backbone, depth = model.backbone, model.depth
        state = backbone.embed(inputs.sample, inputs.timestep, **inputs.conditions)
        for i in range(1, (depth - shallow if whole else shallow) + 1):
            state = backbone.layer(i, state)
        tokens = self.memory.tensor("tokens", state.tokens.shape[1:], state.tokens.dtype, state.tokens.device)
        if whole:
            tokens[places] = state.tokens
        else:
            state = replace(state, tokens=tokens[places])
        for i in range(depth - shallow + 1, depth + 1):
            state = backbone.layer(i, state)
        return model.predict(depth, state)


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

    def session(self, rows: int) -> FirstBlockCachingSession:
        """Begin samplings: return a session of `rows` rows whose first step runs all layers."""
        return FirstBlockCachingSession(self, rows)


class FirstBlockCachingSession(BaselineSession):
    """Remembers the residuals of layer 1 and of the other layers of each row's last full step."""

    denoiser: FirstBlockCaching

    def run(self, inputs: Inputs, steps: Tensor, ties: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        model = self.denoiser.model
        embedded = model.backbone.embed(inputs.sample, inputs.timestep, **inputs.conditions)
        state = model.backbone.layer(1, embedded)
        added = state.tokens - embedded.tokens  # (batch, tokens, width)
        first, rest = (
            self.memory.tensor(name, added.shape[1:], added.dtype, added.device) for name in ("first", "rest")
        )
        cached = self.memory.tensor("cached", (), torch.bool, added.device)  # (batch,)
        stale = any_tied(~cached | (_relative_change(added, first) >= self.denoiser.threshold), ties)
        rows = stale.nonzero().squeeze(1)
        if len(rows):
            deeper = state.select(rows)
            for i in range(2, model.depth + 1):
                deeper = model.backbone.layer(i, deeper)
            first[rows], rest[rows] = added[rows], deeper.tokens - state.tokens[rows]
        cached |= stale
        sample = model.predict(model.depth, replace(state, tokens=state.tokens + rest))
        parts, ran = model.part_flops, stale.cpu()
        reused = parts.embed + int(parts.layers[0] + parts.heads[-1])
        return sample, torch.where(ran, model.depth, 1), torch.where(ran, parts.full, reused)


def _relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Return the mean absolute change of each row over its mean absolute value before, (batch,)."""
    return (now - before).abs().float().mean((1, 2)) / before.abs().float().mean((1, 2))
