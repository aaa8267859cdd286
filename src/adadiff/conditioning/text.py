"""Text encoders: from captions to the features that a backbone puts before its patches.

Two steps, so that the first can be done while data is loaded: `tokenize`, then the module itself. The empty caption is
the null condition.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel, PreTrainedModel
from typing_extensions import Self

from adadiff.errors import InputError


class TextEncoder(ModelMixin, ConfigMixin):
    """The contract of a text encoder.

    Attributes:
        shape: Length and width of a caption's features.
        frozen: Whether it stays as it is while the rest trains, so that features may be kept.
    """

    shape: tuple[int, int]
    frozen: bool

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions as numbers, (batch, any) int64, on the CPU; too long ones are cut."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Features of tokenized captions, (batch, length, width)."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Features of captions, (batch, length, width)."""
        return self(self.tokenize(captions).to(self.device))


class ByteTextEncoder(TextEncoder):
    """A small transformer on bytes, trained together with the backbone; nothing to download.

    A strided convolution makes one token of every few bytes, which keeps the sequence short (as the patches of
    MegaByte, Yu et al. 2023, arXiv 2305.07185).

    Args:
        width: Size of a feature.
        length: Number of features.
        bytes_per_feature: UTF-8 bytes that a feature starts from; `length` times as many bytes are read of a caption.
        depth: Number of layers.
        num_heads: Attention heads; divides the width.
    """

    frozen = False

    @register_to_config
    def __init__(
        self, width: int = 192, length: int = 12, bytes_per_feature: int = 4, depth: int = 2, num_heads: int = 3
    ) -> None:
        super().__init__()
        self.shape = (length, width)
        self.num_bytes = length * bytes_per_feature
        self.embed = nn.Embedding(257, width)  # 0 is "no byte"
        self.patches = nn.Conv1d(width, width, bytes_per_feature, stride=bytes_per_feature)
        self.position = nn.Parameter(torch.empty(1, length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.position, std=0.02)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        tokens = torch.zeros(len(captions), self.num_bytes, dtype=torch.int64)
        for row, caption in zip(tokens, captions, strict=True):
            text = caption.encode()[: self.num_bytes]
            row[: len(text)] = torch.tensor(list(text), dtype=torch.int64) + 1
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.patches(self.embed(tokens).transpose(1, 2)).transpose(1, 2) + self.position
        for layer in self.layers:
            features = layer(features)
        return self.norm(features)


class TransformersTextEncoder(TextEncoder):
    """A text model of `transformers`, frozen: the last hidden state, as U-ViT takes it from CLIP ViT-L/14.

    Args:
        text_model: The model.
        tokenizer: Its tokenizer.
        length: Number of features; captions are padded or cut to it.
    """

    frozen = True

    def __init__(self, text_model: PreTrainedModel, tokenizer: Any, length: int = 77) -> None:
        super().__init__()
        self.register_to_config(length=length)
        self.text_model, self.tokenizer = text_model.eval().requires_grad_(False), tokenizer
        self.tokenizer.model_max_length = length  # saved with it
        self.shape = (length, text_model.config.hidden_size)

    def train(self, mode: bool = True) -> Self:
        """It stays in evaluation mode."""
        return super().train(False)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        length = self.shape[0]
        return self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        return self.text_model(tokens).last_hidden_state

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the model and its tokenizer as transformers does."""
        self.text_model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, length: int = 77, **kwargs: Any
    ) -> Self:
        """Load a text model by its name on the hub or its folder, safetensors only.

        Raises:
            InputError: If there is no such model, or it cannot be fetched.
        """
        name = str(pretrained_model_name_or_path)
        try:
            config = AutoConfig.from_pretrained(name)
            loader: Any = (
                CLIPTextModel if config.model_type in ("clip", "clip_text_model") else AutoModelForTextEncoding
            )
            text_model = loader.from_pretrained(name, use_safetensors=True, dtype=kwargs.get("torch_dtype"))
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{name} is neither a folder with a text model, nor one of that name that can be fetched from the hub"
            ) from error
        return cls(text_model, tokenizer, min(length, tokenizer.model_max_length))
