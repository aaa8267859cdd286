"""Text encoders: from captions to the features that a backbone puts before its patches.

Two steps, so that the first can be done while data is loaded: `tokenize`, then the module itself. The empty caption is
the null condition.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 - diffusers looks for the base class here when it loads a pipeline
from diffusers.configuration_utils import register_to_config
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel, PreTrainedModel
from typing_extensions import Self

from adadiff.errors import InputError
from adadiff.files import verify_checksums
from adadiff.fingerprints import fingerprint, model_fingerprint
from adadiff.verified import VerifiedModel, require_finite, require_fitting

MOST_GRAMS = 40  # of a word: all of one of 13 bytes


class TextEncoder(VerifiedModel):
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

    def identity(self) -> dict[str, Any]:
        """What the features of a caption depend on, as plain values."""
        return {"fingerprint": model_fingerprint(self)}


class ByteTextEncoder(TextEncoder):
    """A feature for each word of a text, trained together with the backbone; nothing to download.

    A word is the mean of the embeddings of its byte n-grams and of itself, each looked up by hash in one table
    (fastText, Bojanowski et al. 2017, arXiv 1607.04606): the same word is alike wherever it stands, and words that are
    spelt alike are much alike. What words mean together is left to the backbone, which sees them as tokens.

    Nothing but the table is trained, and the norm has no weights: with two transformer layers after it, the features of
    all texts became one within 150 steps on emoji (their deviation over texts fell to 0.04, and the right text helped
    no more than a wrong one), since to begin with a text is noise to the backbone.

    Args:
        width: Size of a feature.
        length: Number of features, one a word; words after these are not read.
        buckets: Rows of the table.
    """

    frozen = False

    @register_to_config
    def __init__(self, width: int = 192, length: int = 12, buckets: int = 4096) -> None:
        super().__init__()
        self.shape = (length, width)
        self.buckets = buckets
        self.embed = nn.EmbeddingBag(buckets + 1, width, mode="mean", padding_idx=0)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """The table's rows for the n-grams of each word, (batch, length, MOST_GRAMS) int64, 0 where there are none.

        Captions are compared in lower case and in Unicode's composed form (NFC), so that an accent is the same whether
        it was typed as one character or as two.
        """
        tokens = torch.zeros(len(captions), self.shape[0], MOST_GRAMS, dtype=torch.int64)
        for rows, caption in zip(tokens, captions, strict=True):
            for row, word in zip(rows, _words(caption), strict=False):
                hashes = [zlib.crc32(gram) % self.buckets + 1 for gram in byte_ngrams(word)[:MOST_GRAMS]]
                row[: len(hashes)] = torch.tensor(hashes)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.embed(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]))


def _words(caption: str) -> list[str]:
    return unicodedata.normalize("NFC", caption.lower()).split()


def byte_ngrams(word: str) -> list[bytes]:
    """The word between < and >, in UTF-8, and all that stands in it in a row of 3, 4 or 5 bytes."""
    marked = f"<{word}>".encode()
    return [marked, *(marked[k : k + n] for n in (3, 4, 5) for k in range(len(marked) - n + 1))]


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

    def identity(self) -> dict[str, Any]:
        """What the features of a caption depend on, the tokenizer's vocabulary included."""
        return {**super().identity(), "vocabulary": fingerprint(sorted(self.tokenizer.get_vocab().items()))}

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
            InputError: If there is no such model, it cannot be fetched, or its weights are damaged.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            verify_checksums(Path(name))
        try:
            config = AutoConfig.from_pretrained(name)
            loader: Any = (
                CLIPTextModel if config.model_type in ("clip", "clip_text_model") else AutoModelForTextEncoding
            )
            text_model, info = loader.from_pretrained(
                name, use_safetensors=True, dtype=kwargs.get("torch_dtype"), output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{name} is neither a folder with a text model, nor one of that name that can be fetched from the hub"
            ) from error
        require_fitting({**info, "unexpected_keys": ()}, name)  # a whole CLIP has those of its image half
        require_finite(text_model, name)
        return cls(text_model, tokenizer, min(length, tokenizer.model_max_length))
