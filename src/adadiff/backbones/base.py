"""The contract between a backbone and everything that lets samples leave it early.

A backbone is a denoiser cut at its layers: `embed -> layer(1) -> ... -> layer(depth) -> head`. Between layers,
all that a sample carries is its part of a `LayerState`, so that samples may be dropped from the batch anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn
from typing_extensions import Self

from adadiff.errors import InputError


def unpatchify(patches: Tensor, sample_size: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches, row by row, back in their places in the image.

    Args:
        patches: (batch, patches, patch_size * patch_size * channels), the channels varying fastest.
        sample_size: Height and width of the image, in pixels.
        patch_size: Side of a patch, in pixels.

    Returns:
        Images, (batch, channels, height, width).
    """
    rows, columns = (side // patch_size for side in sample_size)
    grid = patches.unflatten(1, (rows, columns)).unflatten(3, (patch_size, patch_size, -1))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class LayerState:
    """What a batch carries from one layer to the next.

    Args:
        tokens: Hidden tokens L_i, (batch, tokens, width).
        time: Embedding of each sample's time step, (batch, width).
    """

    tokens: Tensor
    time: Tensor

    def select(self, samples: Tensor) -> Self:
        """The state of some samples alone; `samples` holds their positions in this batch, (kept,) int64."""
        raise NotImplementedError


State = TypeVar("State", bound=LayerState)


class Backbone(nn.Module, ABC, Generic[State]):
    """A noise predictor that hands out its layers one at a time.

    Attributes:
        depth: Number of layers N; layers are numbered 1..N.
        width: Size of a token.
        patch_size: Side of the square patch that a token stands for, in pixels.
        in_channels: Channels of the image.
        sample_size: Height and width of the image, in pixels.
        num_classes: Size of the class table, or None where the backbone takes no classes.
        context_shape: Length and width of the text features, or None where it takes no text.
        head: Output head g_N, from patch tokens (batch, patches, width) to a prediction
            (batch, in_channels, height, width). Exits at other layers may share or copy it.
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
        """The state before the first layer.

        Args:
            sample: Noisy images x_t, (batch, in_channels, height, width).
            timestep: Time step of each sample, (batch,).
            class_labels: Class of each sample, (batch,) int64, where the backbone takes classes.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), where it takes text.
        """

    @abstractmethod
    def layer(self, i: int, state: State) -> State:
        """Run layer i (1-based) on the state left by layer i - 1."""

    @abstractmethod
    def patch_tokens(self, state: State) -> Tensor:
        """The tokens that stand for patches of the image, (batch, patches, width)."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """The plain backbone's prediction, all layers run: (batch, in_channels, height, width)."""
        state = self.embed(sample, timestep, class_labels, encoder_hidden_states)
        for i in range(1, self.depth + 1):
            state = self.layer(i, state)
        return self.head(self.patch_tokens(state))

    def check_inputs(
        self, sample: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> None:
        """Raise InputError where the inputs' shapes or conditions are not this backbone's."""
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
        """Numbers in a patch of the image: patch_size^2 * in_channels."""
        return self.patch_size**2 * self.in_channels

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Put patches back in their places: (batch, patches, patch_values) to (batch, in_channels, height, width)."""
        return unpatchify(patches, self.sample_size, self.patch_size)
