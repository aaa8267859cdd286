"""The interface of a backbone, which lets samples exit after any of its layers.

A backbone is a denoiser cut at its layers: `embed -> layer(1) -> ... -> layer(depth) -> head`. Between layers a
sample's whole state is its rows of a `LayerState`, so samples can be dropped from the batch after any layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from adadiff.utils.errors import InputError, suggestion
from adadiff.utils.modules import registered, stored_name
from adadiff.utils.ranges import Count, check_ranges

BACKBONES: dict[str, type[Backbone[Any]]] = {}
"""All backbone classes, keyed by the name they are stored under; subclasses of `Backbone` register themselves."""


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
        """Return the state of a subset of the samples: these rows of every field.

        A state with fields that are no tensors, samples first, needs a `select` of its own.

        Args:
            samples: Positions of the samples in the batch, (kept,) int64.
        """
        return replace(self, **{field.name: getattr(self, field.name)[samples] for field in fields(self)})


State = TypeVar("State", bound=LayerState)

# ---------------------------------------------------------------------------------------------------------------------
# What a backbone is built from


@dataclass(frozen=True)
class BackboneConfig:
    """The choices that every backbone offers; a backbone's own `Config` derives from it and adds its own.

    The fields are options of the command line, such as `--model.width`, and the text under a field is its help. Types
    of `adadiff.utils.ranges` state a field's range.
    """

    patch_size: Count = 4
    """Side of a patch, in pixels."""
    width: Count = 192
    """Number of values in a token."""
    depth: Count = 9
    """Number of layers."""


@dataclass(frozen=True)
class InputSpec:
    """What a backbone must take and predict; it follows from the data and the forward process, nobody chooses it.

    Args:
        sample_size: Height and width of the image, in pixels, or of the latents.
        in_channels: Channels of the image.
        num_classes: Size of the class table, including the null class if there is one; None for no classes.
        context_length: Number of text features.
        context_dim: Size of a text feature; None for no text.
        time_scale: The network embeds the time time_scale * (timestep + time_shift).
        time_shift: Offset added to the time step before scaling.
    """

    sample_size: tuple[Count, Count]
    in_channels: Count
    num_classes: Count | None = None
    context_length: Count = 77
    context_dim: Count | None = None
    time_scale: float = 1.0
    time_shift: float = 0.0

    @property
    def context_shape(self) -> tuple[int, int] | None:
        """Length and width of the text features; None for no text."""
        return None if self.context_dim is None else (self.context_length, self.context_dim)

    def network_time(self, timestep: Tensor) -> Tensor:
        """Return the times that the network embeds, shaped like `timestep`."""
        return self.time_scale * (timestep + self.time_shift)


def backbone_settings(config: BackboneConfig, inputs: InputSpec) -> dict[str, Any]:
    """Return the plain values that a saved model holds as its `backbone_config`; `Backbone.from_settings` reads them.

    They are all fields of the config, and those of the inputs that differ from their defaults. Sample size and channels
    are kept beside them.
    """
    given = {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.default is not MISSING}
    defaults = {field.name: field.default for field in fields(inputs)}
    return {**asdict(config), **{name: value for name, value in given.items() if value != defaults[name]}}


# ---------------------------------------------------------------------------------------------------------------------
# The backbone


class Backbone(nn.Module, ABC, Generic[State]):
    """A denoiser whose layers can be run one at a time, so that samples can exit after any of them.

    A subclass names its choices as `Config`, a frozen dataclass derived from `BackboneConfig`. From one of these and an
    `InputSpec` its `__init__` builds layers and head. It registers itself when its module is imported; from then on
    `ModelConfig(backbone=...)` trains it, and saved models with it are loaded.

    Args:
        config: The user's choices, of the class's own `Config`.
        inputs: What follows from the data and the forward process. A backbone uses all of it, or raises InputError.

    Raises:
        InputError: If the image cannot be cut into patches.

    Attributes:
        Config: Class of the user's choices.
        config: The user's choices.
        inputs: What the backbone takes and predicts.
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
        >>> from adadiff.backbones import InputSpec, UViT, UViTConfig
        >>> backbone = UViT(UViTConfig(width=32, depth=3, num_heads=2), InputSpec((8, 8), in_channels=1)).eval()
        >>> state = backbone.embed(torch.zeros(2, 1, 8, 8), timestep=torch.tensor([10, 20]))
        >>> state = backbone.layer(1, state)
        >>> state = state.select(torch.tensor([1]))  # the first sample exits, the second goes on
        >>> backbone.head(backbone.patch_tokens(backbone.layer(2, state))).shape
        torch.Size([1, 1, 8, 8])
    """

    Config: ClassVar[type[BackboneConfig]]
    head: nn.Module

    def __init__(self, config: BackboneConfig, inputs: InputSpec) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.depth, self.width, self.patch_size = config.depth, config.width, config.patch_size
        self.in_channels, self.sample_size = inputs.in_channels, inputs.sample_size
        self.num_classes, self.context_shape = inputs.num_classes, inputs.context_shape
        if any(side < self.patch_size or side % self.patch_size for side in self.sample_size):
            height, width = self.sample_size
            raise InputError(
                f"images of {height}x{width} pixels cannot be cut into patches of {self.patch_size}: choose a patch "
                f"size that divides both sides"
            )
        self.gradient_checkpointing = False  # diffusers sets this and the next one
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):  # else it is a base class of others
            _require_own_config(cls)
            BACKBONES[cls.name()] = cls

    @classmethod
    def name(cls) -> str:
        """Return the name that the backbone is stored under: ours in lower case, any other after its module."""
        return stored_name(cls, own=cls.__name__.lower())

    @classmethod
    def from_settings(cls, sample_size: tuple[int, int], in_channels: int, **settings: Any) -> Self:
        """Build a backbone from plain values, as `backbone_settings` returns them.

        Args:
            sample_size: Height and width of the image, in pixels.
            in_channels: Channels of the image.
            settings: Other fields of the class's `Config` and of `InputSpec`.

        Raises:
            InputError: If a name is unknown, a value is out of range, or the sizes do not fit together.
        """
        choices = {field.name for field in fields(cls.Config)}
        known = choices | {field.name for field in fields(InputSpec)}
        for name in settings:
            if name not in known:
                raise InputError(f"the backbone {cls.name()} has no setting {name!r}: {suggestion(name, known)}")
        config = cls.Config(**{name: value for name, value in settings.items() if name in choices})
        given = {name: value for name, value in settings.items() if name not in choices}
        return cls(check_ranges(config), check_ranges(InputSpec(sample_size, in_channels, **given)))

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

    def example_inputs(self, batch: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Make inputs of `embed` for a batch, of the right shapes and any values, on torch's default device."""
        return (
            torch.empty(batch, self.in_channels, *self.sample_size),
            torch.zeros(batch),
            None if self.num_classes is None else torch.zeros(batch, dtype=torch.int64),
            None if self.context_shape is None else torch.empty(batch, *self.context_shape),
        )

    def run(self, part: nn.Module, *inputs: Tensor) -> Any:
        """Call a part of the network, recomputing it in the backward pass where gradient checkpointing is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            assert self._gradient_checkpointing_func is not None
            return self._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)

    @property
    def patch_values(self) -> int:
        """Number of values in a patch of the image: patch_size^2 * in_channels."""
        return self.patch_size**2 * self.in_channels

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Assemble patches, (batch, patches, patch_values), into images, (batch, in_channels, height, width)."""
        return unpatchify(patches, self.sample_size, self.patch_size)


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def backbone_named(name: str) -> type[Backbone[Any]]:
    """Return the backbone class that is stored under a name.

    Raises:
        InputError: If there is none, or its module was not imported.
    """
    return registered(name, BACKBONES, "backbone")


def backbone_of(config: BackboneConfig) -> type[Backbone[Any]]:
    """Return the backbone class whose `Config` this is.

    Raises:
        InputError: If it is the config of no backbone.
    """
    for kind in BACKBONES.values():
        if kind.Config is type(config):
            return kind
    raise InputError(f"{type(config).__name__} is the Config of no backbone: give one such as UViTConfig")


def _require_own_config(kind: type[Backbone[Any]]) -> None:
    """Raise TypeError unless a backbone class's `Config` is a dataclass of its own that fits beside `InputSpec`."""
    config, name = kind.Config, kind.__qualname__
    if not issubclass(config, BackboneConfig) or "__dataclass_fields__" not in vars(config):
        raise TypeError(f"{name}.Config must be a frozen dataclass derived from BackboneConfig")
    taken = {field.name for field in fields(config)} & {field.name for field in fields(InputSpec)}
    if taken:
        raise TypeError(f"{name}.Config has a field {min(taken)}, which is not chosen but given by InputSpec")
    others = [other for other in BACKBONES.values() if other.Config is config]
    if others or config is BackboneConfig:
        raise TypeError(f"{name}.Config is that of another class: derive one for {name}, by which it is found")
