"""Conditions: they map class labels or captions of training images to tensors; each kind is one class here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adadiff.conditioning.text import TextEncoder
from adadiff.utils.errors import InputError
from adadiff.utils.fingerprints import fingerprint, weights_of

Reads = Literal["none", "class", "text"]
"""What a condition reads of a training item: nothing, its label, or its caption."""


class Condition(ABC):
    """Maps the label or caption of a training item to input tensors of the model.

    One of your own is a subclass that is built without arguments and gives `class_labels`, rows of a class table of its
    own. `ModelConfig(condition="package.module:name")` trains a model on it, and the model is sampled by the names of
    its classes; the condition's code is not needed for that.

    Attributes:
        reads: What it reads; training refuses items without it.
        class_names: Names of rows 0, 1, ... of the class table; the row after them is the null class.

    Examples:
        >>> class Halves(Condition):
        ...     reads, class_names = "class", ("low", "high")
        ...
        ...     def of(self, item):
        ...         return {"class_labels": torch.tensor(int(item["label"] >= 5))}
        ...
        ...     def nothing(self):
        ...         return {"class_labels": torch.tensor(2)}
        >>> Halves().of({"label": 7})
        {'class_labels': tensor(1)}
    """

    reads: ClassVar[Reads] = "none"
    class_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors for this item's label or caption, by the name of the model's argument."""

    @abstractmethod
    def nothing(self) -> dict[str, Tensor]:
        """Return the tensors of the null condition, which classifier-free guidance needs the model to learn."""


class Unconditional(Condition):
    """Adds no tensors: the model is unconditional."""

    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {}

    def nothing(self) -> dict[str, Tensor]:
        return {}


class ClassCondition(Condition):
    """Maps the class label to `class_labels`, () int64.

    Args:
        labels: All labels of the data.
        num_classes: Size of the class table, including the null class.
        null_class: The class that stands for "no class", or None if the condition is never dropped.

    Raises:
        InputError: If a label is outside the table.
    """

    def __init__(self, labels: Sequence[int], num_classes: int, null_class: int | None) -> None:
        self.null_class = null_class
        most = num_classes - 1 if null_class is None else null_class - 1
        outside = {label for label in labels if label is None or not 0 <= label <= most}
        if outside:
            raise InputError(
                f"the data have a label {outside.pop()}, but the model's classes are 0 to {most}: set a larger "
                f"--model.num-classes"
            )

    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor(item["label"])}

    def nothing(self) -> dict[str, Tensor]:
        assert self.null_class is not None
        return {"class_labels": torch.tensor(self.null_class)}


class TokenCondition(Condition):
    """Maps the caption to `tokens` of one caption, int64, for a text encoder that is trained with the model."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"tokens": self.encoder.tokenize([item["caption"]])[0]}

    def nothing(self) -> dict[str, Tensor]:
        return self.of({"caption": ""})


class FeatureCondition(Condition):
    """Maps the caption to features of a frozen text encoder: `encoder_hidden_states`, (length, width).

    The features of each distinct caption are computed once and cached on disk in half precision, also for later
    training runs with this encoder and these captions.

    Args:
        encoder: The text encoder.
        captions: All captions of the data.
        cache: Folder for the features.

    Raises:
        InputError: If features are NaN, or too large for half precision.
    """

    def __init__(self, encoder: TextEncoder, captions: Sequence[str], cache: Path) -> None:
        import datasets  # here, since it loads slowly and sampling needs none

        distinct = sorted({"", *captions})
        self._row = {caption: row for row, caption in enumerate(distinct)}
        key = fingerprint([encoder.shape, *weights_of(encoder), *distinct])
        cache.mkdir(parents=True, exist_ok=True)
        length, width = encoder.shape

        def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
            features = encoder.encode(rows["caption"]).half().cpu()
            if not features.isfinite().all():
                raise InputError(
                    "the text encoder's features are NaN, or too large for float16: choose another --model.text-encoder"
                )
            return {"features": features.numpy()}

        self._features = (
            datasets.Dataset.from_dict({"caption": distinct})
            .map(
                encode,
                batched=True,
                batch_size=64,
                remove_columns="caption",
                features=datasets.Features({"features": datasets.Array2D((length, width), "float16")}),
                new_fingerprint=key,
                cache_file_name=str(cache / f"captions-{key}.arrow"),
                desc="encoding captions",
            )
            .with_format("torch")
        )

    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self._features[self._row[item["caption"]]]["features"].float()}

    def nothing(self) -> dict[str, Tensor]:
        return self.of({"caption": ""})
