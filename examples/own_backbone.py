"""A backbone of your own: a plain vision transformer without long skips, trained and sampled with early exits.

    python examples/own_backbone.py runs/plain    # a few steps, to see that it works

On the command line, `--import` makes backbone and preset known, and `--model` has the options of its `Config`:

    export PYTHONPATH=examples
    adadiff train digits-plain --import own_backbone --model.depth 8 --steps 2000
    adadiff sample runs/digits-plain --import own_backbone --tau 0.3 --out samples
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from adadiff import AdaDiffPipeline, InputError
from adadiff.backbones import Backbone, BackboneConfig, InputSpec, LayerState
from adadiff.training import train
from adadiff.training.config import ModelConfig
from adadiff.training.presets import DIGITS, PRESETS, Preset
from adadiff.utils.ranges import Count

# ---------------------------------------------------------------------------------------------------------------------
# The backbone


@dataclass(frozen=True)
class PlainViTConfig(BackboneConfig):
    """What a user chooses, beside patch size, width and depth, which every backbone has."""

    num_heads: Count = 2
    """Number of attention heads; divides the width."""


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class Head(nn.Module):
    """Maps patch tokens, (batch, patches, width), to the prediction, (batch, channels, height, width)."""

    def __init__(self, config: PlainViTConfig, inputs: InputSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.linear = nn.Linear(config.width, config.patch_size**2 * inputs.in_channels)
        self.assemble = nn.Fold(inputs.sample_size, config.patch_size, stride=config.patch_size)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        return self.assemble(self.linear(self.norm(patch_tokens)).transpose(1, 2))


class PlainViT(Backbone[LayerState]):
    """A vision transformer; time and class are added to every token."""

    Config: ClassVar[type[PlainViTConfig]] = PlainViTConfig

    def __init__(self, config: PlainViTConfig, inputs: InputSpec) -> None:
        super().__init__(config, inputs)  # sets depth, width, patch_size, sample_size, in_channels, num_classes, ...
        if config.width % (2 * config.num_heads):
            raise InputError(f"width {config.width} must be an even multiple of num_heads, {config.num_heads}")
        if inputs.context_shape is not None:
            raise InputError("a plain ViT takes no text: choose --model.condition none or class")
        width, patches = config.width, [side // config.patch_size for side in inputs.sample_size]
        self.patch_embed = nn.Conv2d(inputs.in_channels, width, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches[0] * patches[1], width))
        self.class_embed = None if inputs.num_classes is None else nn.Embedding(inputs.num_classes, width)
        self.layers = nn.ModuleList(Layer(width, config.num_heads) for _ in range(config.depth))
        self.head = Head(config, inputs)

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> LayerState:
        self.check_inputs(sample, class_labels, encoder_hidden_states)
        patches = self.patch_embed(sample).flatten(2).transpose(1, 2) + self.position  # (batch, patches, width)
        time = get_timestep_embedding(self.inputs.network_time(timestep), self.width).to(patches.dtype)
        told = time if self.class_embed is None else time + self.class_embed(class_labels)  # (batch, width)
        return LayerState(patches + told[:, None], time)

    def layer(self, i: int, state: LayerState) -> LayerState:
        return replace(state, tokens=self.run(self.layers[i - 1], state.tokens))

    def patch_tokens(self, state: LayerState) -> Tensor:
        return state.tokens


# ---------------------------------------------------------------------------------------------------------------------
# A preset, by which the command line trains it

PRESETS["digits-plain"] = Preset(
    replace(
        DIGITS,
        out=Path("runs/digits-plain"),
        model=ModelConfig(PlainViTConfig(patch_size=2, width=32, depth=4)),
        sampling=replace(DIGITS.sampling, min_layer=1),
    ),
    description="scikit-learn's digits with a plain vision transformer",
    shape=(1, 8, 8),
)


def main(out: Path) -> None:
    train(replace(PRESETS["digits-plain"].train, out=out, steps=10, batch_size=16, mixed_precision="no"))
    pipe = AdaDiffPipeline.from_pretrained(out)
    trace = pipe(batch_size=4, num_inference_steps=5, tau=0.6, generator=torch.Generator().manual_seed(0)).trace
    print(f"{trace.compute_fraction:.0%} of the full model's compute; layers run by each sample at each step:")
    print(trace.exit_layers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
