"""The interface of a backbone, which lets samples exit after any of its layers.

A backbone is a denoiser cut at its layers: `embed -> layer(1) -> ... -> layer(depth) -> head`. Between layers a
sample's whole state is its rows of a `LayerState`, so samples can be dropped from the batch after any layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn
from typing_extensions import Self

from adadiff.utils.errors import InputError


def unpatchify(patches: Tensor, sample_size: tuple[int, int], patch_size: int) -> Tensor:
    """Assemble patches, ordered row by row, into images.

    Args:
        patches: (batch, patches, patch_size * patch_size * channels), the channels varying fastest.
        sample_size: Height and width of the image, in pixels.
        patch_size: Side of a patch, in pixels.

    Returns:
        Images, (batch, channels, height, width).
    """
    rows, columns = (side // patch_size for side in sample_size)
    # (batch, rows, columns, patch_size, patch_size, channels)
    grid = patches.unflatten(1, (rows, columns)).unflatten(3, (patch_size, patch_size, -1))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class LayerState:
    """The state of a batch between two layers.

    Args:
        tokens: Hidden tokens L_i, (batch, tokens, width).
        time: Embedding of each sample's time step, (batch, width).
    """

    tokens: Tensor
    time: Tensor

    def select(self, samples: Tensor) -> Self:
        """Return the state of a subset of the samples; `samples` holds their positions in the batch, (kept,) int64."""
        raise NotImplementedError


State = TypeVar("State", bound=LayerState)


class Backbone(nn.Module, ABC, Generic[State]):
    """A denoiser whose layers can be run one at a time, so that samples can exit after any of them.

    Attributes:
        depth: Number of layers N; layers are numbered 1..N.
        width: Number of values in a token.
        patch_size: Side of the square patch that a token represents, in pixels.
        in_channels: Channels of the image.
        sample_size: Height and width of the image, in pixels.
        num_classes: Size of the class table, or None if the backbone takes no classes.
        context_shape: Length and width of the text features, or None if the backbone takes no text.
        head: Output head g_N, from patch tokens (batch, patches, width) to a prediction
            (batch, in_channels, height, width). Exits at other layers may share or copy it.

    Examples:
        >>> import torch
        >>> from adadiff.backbones import UViT
        >>> backbone = UViT(sample_size=(8, 8), in_channels=1, width=32, depth=3, num_heads=2).eval()
        >>> state = backbone.embed(torch.zeros(2, 1, 8, 8), timestep=torch.tensor([10, 20]))
        >>> state = backbone.layer(1, state)
        >>> state = state.select(torch.tensor([1]))  # the first sample exits, the second goes on
        >>> backbone.head(backbone.patch_tokens(backbone.layer(2, state))).shape
        torch.Size([1, 1, 8, 8])
    """

    depth: int
    width: int
    patch_size: int
    in_channels: int
    sample_size: tuple[int, int]
    num_classes: int | None
    context_shape: tuple[int, int] | None
    head: nn.Module

    @abstractmethod
    def embed(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> State:
        """Embed the inputs: return the state before the first layer.

        Args:
            sample: Noisy images x_t, (batch, in_channels, height, width).
            timestep: Time step of each sample, (batch,).
            class_labels: Class of each sample, (batch,) int64, if the backbone takes classes.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), if the backbone takes text.
        """

    @abstractmethod
    def layer(self, i: int, state: State) -> State:
        """Run layer i, 1..depth, on the state after layer i - 1, and return the state after layer i."""

    @abstractmethod
    def patch_tokens(self, state: State) -> Tensor:
        """Return the tokens that represent patches of the image, (batch, patches, width)."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Predict with all layers, without exits: (batch, in_channels, height, width)."""
        state = self.embed(sample, timestep, class_labels, encoder_hidden_states)
        for i in range(1, self.depth + 1):
            state = self.layer(i, state)
        return self.head(self.patch_tokens(state))

    def check_inputs(
        self, sample: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> None:
        """Raise InputError if the inputs' shapes or conditions do not fit this backbone."""
        wanted = (self.in_channels, *self.sample_size)
        if sample.shape[1:] != wanted:
            raise InputError(
                f"the model takes samples of (channels, height, width) {wanted}, not {tuple(sample.shape[1:])}"
            )
        for name, value, takes in (
            ("class_labels", class_labels, self.num_classes is not None),
            ("encoder_hidden_states", encoder_hidden_states, self.context_shape is not None),
        ):
            if takes != (value is not None):
                raise InputError(f"the model {'needs' if takes else 'takes no'} {name}")

    @property
    def patch_values(self) -> int:
        """Number of values in a patch of the image: patch_size^2 * in_channels."""
        return self.patch_size**2 * self.in_channels

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Assemble patches, (batch, patches, patch_values), into images, (batch, in_channels, height, width)."""
        return unpatchify(patches, self.sample_size, self.patch_size)
