"""Text encoders: they map captions to features, which a backbone takes as tokens before its patches.

Encoding has two steps, `tokenize` and then the module itself, so that the first can run in data-loading workers. The
empty caption is the null condition.
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

from adadiff.utils.errors import InputError
from adadiff.utils.files import verify_checksums
from adadiff.utils.fingerprints import fingerprint, model_fingerprint
from adadiff.utils.verified import VerifiedModel, require_finite, require_fitting

MOST_GRAMS = 40  # n-grams used per word: enough for all of a word of 13 bytes


class TextEncoder(VerifiedModel):
    """Base class of text encoders: maps captions to features.

    Attributes:
        shape: Length and width of a caption's features.
        frozen: Whether its weights are never trained, so that features can be cached.
    """

    shape: tuple[int, int]
    frozen: bool

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Convert captions to tokens, int64, batch first, on the CPU; captions that are too long are truncated."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the features of tokenized captions, (batch, length, width)."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Tokenize captions and compute their features, (batch, length, width)."""
        return self(self.tokenize(captions).to(self.device))

    def identity(self) -> dict[str, Any]:
        """Return what the features of a caption depend on, as plain values."""
        return {"fingerprint": model_fingerprint(self)}


class ByteTextEncoder(TextEncoder):
    """Computes one feature per word, trained together with the backbone; it needs no download.

    A word's feature is the mean of the embeddings of the word and its byte n-grams, each looked up by hash in one table
    (fastText, Bojanowski et al. 2017, arXiv 1607.04606). It does not depend on the word's position, and words with
    similar spelling have similar features. Combining words is left to the backbone, which takes them as tokens.

    Only the table is trained, and the norm has no weights. With two transformer layers after it, the features of all
    texts collapsed within 150 steps on emoji (their deviation over texts fell to 0.04, and the right text helped no
    more than a wrong one), because text is noise to an untrained backbone.

    Args:
        width: Size of a feature.
        length: Number of features, one per word; further words are ignored.
        buckets: Number of rows of the table.
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
        """Look up the table rows of each word's n-grams: (batch, length, MOST_GRAMS) int64, padded with 0.

        Captions are converted to lower case and to Unicode's composed form (NFC), so that an accented letter has one
        representation, whether it was typed as one character or two.
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
    """Return `<word>` in UTF-8, followed by all its substrings of 3, 4 and 5 bytes."""
    marked = f"<{word}>".encode()
    return [marked, *(marked[k : k + n] for n in (3, 4, 5) for k in range(len(marked) - n + 1))]


class TransformersTextEncoder(TextEncoder):
    """Computes the last hidden state of a frozen text model of `transformers`; U-ViT uses that of CLIP ViT-L/14.

    Args:
        text_model: The text model.
        tokenizer: The text model's tokenizer.
        length: Number of features; captions are padded or truncated to it.
    """

    frozen = True

    def __init__(self, text_model: PreTrainedModel, tokenizer: Any, length: int = 77) -> None:
        super().__init__()
        self.register_to_config(length=length)
        self.text_model, self.tokenizer = text_model.eval().requires_grad_(False), tokenizer
        self.tokenizer.model_max_length = length  # saved with it
        self.shape = (length, text_model.config.hidden_size)

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode, whatever `mode` is, because the model is frozen."""
        return super().train(False)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        length = self.shape[0]
        return self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def identity(self) -> dict[str, Any]:
        """Return what the features of a caption depend on, including the tokenizer's vocabulary."""
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
        """Load a text model from a folder or by its name on the hub; only safetensors files are read.

        Raises:
            InputError: If the model does not exist, cannot be fetched, or has damaged weights.
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
                f"{name} is neither a folder with a text model, nor the name of one that can be fetched from the hub: "
                f"check the name and the network connection"
            ) from error
        require_fitting({**info, "unexpected_keys": ()}, name)  # a full CLIP checkpoint has those of its image encoder
        require_finite(text_model, name)
        return cls(text_model, tokenizer, min(length, tokenizer.model_max_length))
