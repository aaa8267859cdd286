"""A conditioning of your own: digits by whether they are even or odd, in place of the ten classes of the data.

    python examples/own_conditioning.py runs/parity    # a few steps, to see that it works

On the command line the class is named as `--model.condition`; to sample the trained model, its code is not needed:

    PYTHONPATH=examples adadiff train digits --model.condition own_conditioning:Parity --out runs/parity --steps 2000
    adadiff sample runs/parity --class odd --guidance-scale 2 --out samples
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadiff import AdaDiffPipeline
from adadiff.conditioning import Condition
from adadiff.training import train
from adadiff.training.presets import DIGITS


class Parity(Condition):
    """Maps a digit's label to even or odd."""

    reads = "class"
    class_names = ("even", "odd")

    def of(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor(item["label"] % 2)}

    def nothing(self) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor(2)}  # the row after the names


def main(out: Path) -> None:
    model = replace(DIGITS.model, condition="own_conditioning:Parity")
    train(replace(DIGITS, out=out, model=model, steps=5, batch_size=8, mixed_precision="no"))
    pipe = AdaDiffPipeline.from_pretrained(out)
    images = pipe(class_labels=["even", "odd", "odd"], guidance_scale=2, num_inference_steps=5).images
    print(f"{len(images)} images; the model's classes are {', '.join(pipe.transformer.config.class_names)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
