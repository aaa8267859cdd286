"""Train a small diffusion transformer of diffusers by the plain loss, and save it as a stock pipeline's folder.

Nothing of adadiff is used: these are models that `adadiff.enable` and `adadiff.calibrate` are tried on.

    python examples/train_stock_dit.py digits --out runs/digits-dit
    python examples/train_stock_dit.py cifar10 --data cifar10/train.parquet --out runs/cifar10-dit
    python examples/train_stock_dit.py emoji --data emoji/train.parquet --out runs/emoji-pixart

After an interruption the same command continues. The models work on pixels; as the pipelines of diffusers ask for an
autoencoder, they get one whose weights make it the identity.
"""

from __future__ import annotations

import argparse
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from diffusers.training_utils import EMAModel
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

NO_CLASS = 1000  # the class that DiTPipeline takes for none
WORDS = 12  # tokens of a prompt
DROPPED = 0.1  # share of the conditions that are left out, for guidance


class Task(ABC, nn.Module):
    """What is trained: the data, the modules with weights to train, and the pipeline they become.

    Attributes:
        images: All images, (samples, channels, height, width) in [-1, 1].
        transformer: The denoiser.
        steps, batch_size, learning_rate: How it is trained.
        mirrored: Whether half of the images are mirrored.
    """

    images: Tensor
    transformer: Any
    steps: int
    batch_size = 64
    learning_rate = 1e-3
    mirrored = False

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, chosen: Tensor) -> Tensor:
        """Predict the noise in noisy images; `chosen` are the positions of the images in the data, (batch,) int64."""

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline."""


class ClassTask(Task):
    """Trains a DiT on images with classes.

    Attributes:
        names: Names of the classes.
    """

    names: Sequence[str]

    def __init__(self, images: Tensor, classes: Tensor, heads: int, layers: int, patch: int) -> None:
        super().__init__()
        self.images, self.classes = images, classes
        channels, size = images.shape[1:3]
        self.transformer = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=32,
            in_channels=channels,
            out_channels=channels,
            num_layers=layers,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=NO_CLASS,
        ).eval()  # in training mode each of its blocks would drop classes by itself
        zeroed = [block.norm1.linear for block in self.transformer.transformer_blocks]
        for layer in (*zeroed, self.transformer.proj_out_1, self.transformer.proj_out_2):
            nn.init.zeros_(layer.weight)  # each block is the identity at first (adaLN-Zero)
            nn.init.zeros_(layer.bias)

    def predict(self, noisy: Tensor, times: Tensor, chosen: Tensor) -> Tensor:
        dropped = torch.rand(len(chosen)) < DROPPED
        classes = self.classes[chosen].masked_fill(dropped, NO_CLASS)
        return self.transformer(noisy, times, class_labels=classes).sample

    def pipeline(self) -> DiffusionPipeline:
        vae = identity_autoencoder(*self.images.shape[1:3])
        pipe = DiTPipeline(self.transformer, vae, DPMSolverMultistepScheduler())
        pipe.register_to_config(id2label={str(k): name for k, name in enumerate(self.names)})
        return pipe


class Digits(ClassTask):
    """Trains on the 8x8 digits of scikit-learn: 12 layers of width 96."""

    names = "0123456789"
    steps = 8000

    def __init__(self, data: Path | None) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
        super().__init__(images, torch.tensor(digits.target), heads=3, layers=12, patch=2)

    def pipeline(self) -> DiffusionPipeline:
        pipe = super().pipeline()
        pipe.scheduler = DDIMScheduler(clip_sample=False)
        return pipe


class Cifar10(ClassTask):
    """Trains on the training images of CIFAR-10: 10 layers of width 128."""

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    steps = 10_000
    mirrored = True

    def __init__(self, data: Path | None) -> None:
        rows = load_dataset("parquet", data_files=str(data), split="train").with_format("numpy")
        images = torch.from_numpy(np.stack(rows["image"][:])).permute(0, 3, 1, 2) / 127.5 - 1
        super().__init__(images, torch.tensor(rows["label"][:]), heads=4, layers=10, patch=4)


class Emoji(Task):
    """Trains a PixArt transformer, 10 layers of width 128, and a T5 encoder on 32x32 emoji and their names."""

    steps = 8000
    batch_size = 32

    def __init__(self, data: Path | None) -> None:
        super().__init__()
        rows = load_dataset("parquet", data_files=str(data), split="train")
        small = [np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX)) for image in rows["image"]]
        self.images = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1
        self.tokenizer = word_tokenizer(rows["text"])
        self.tokens = self.tokenizer(
            [*rows["text"], ""], padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt"
        )
        self.text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(self.tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
        ).eval()
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=3,
            out_channels=3,
            num_layers=10,
            sample_size=32,
            patch_size=4,
            cross_attention_dim=128,
            caption_channels=128,
            use_additional_conditions=False,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def predict(self, noisy: Tensor, times: Tensor, chosen: Tensor) -> Tensor:
        dropped = torch.rand(len(chosen)) < DROPPED
        named = chosen.masked_fill(dropped, len(self.images))  # the last text is the empty one
        ids, mask = self.tokens.input_ids[named], self.tokens.attention_mask[named]
        text = self.text_encoder(ids, mask).last_hidden_state
        return self.transformer(noisy, text, times, encoder_attention_mask=mask, return_dict=False)[0]

    def pipeline(self) -> DiffusionPipeline:
        vae = identity_autoencoder(3, 32)
        return PixArtSigmaPipeline(
            self.tokenizer, self.text_encoder, vae, self.transformer, DPMSolverMultistepScheduler()
        )


TASKS: dict[str, type[Digits | Cifar10 | Emoji]] = {"digits": Digits, "cifar10": Cifar10, "emoji": Emoji}


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are the words of the texts, in lower case."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=WORDS
    )


@torch.no_grad()
def identity_autoencoder(channels: int, size: int, scale: float = 256.0) -> AutoencoderKL:
    """Make an autoencoder whose decoder returns its input, to about 1e-5.

    A colour x becomes the four channels (x, -x, scale, -scale) of one group, so that the group's mean is 0 and its
    deviation is scale / sqrt(2), next to which x hardly counts. Blocks of zeros add nothing. The last activation is
    undone by silu(z) - silu(-z) = z.
    """
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        block_out_channels=(4 * channels,),
        layers_per_block=1,
        norm_num_groups=channels,
        sample_size=size,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for name, values in vae.named_parameters():
        if "norm" not in name:
            values.zero_()
    for part in (vae.encoder, vae.decoder):
        for k in range(channels):
            part.conv_in.weight[4 * k, k, 1, 1] = 1
            part.conv_in.weight[4 * k + 1, k, 1, 1] = -1
            part.conv_in.bias[4 * k + 2 : 4 * k + 4] = torch.tensor([scale, -scale])
            part.conv_out.weight[k, 4 * k, 1, 1] = scale / math.sqrt(2)
            part.conv_out.weight[k, 4 * k + 1, 1, 1] = -scale / math.sqrt(2)
    vae.encoder.conv_out.bias[channels:] = -30  # the logarithm of the variance of its latents
    return vae.eval()


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of the highest: it rises for 200 steps, then falls as a cosine."""
    return min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def train(task: Task, steps: int, out: Path, minutes_between_saves: float = 5) -> None:
    """Train by the mean squared error of the predicted noise, and save the pipeline with averaged weights."""
    scheduler, weights = DDIMScheduler(), list(task.parameters())
    optimizer = torch.optim.AdamW(weights, task.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    average = EMAModel(weights, decay=0.9995, use_ema_warmup=True, power=0.75)
    stateful = {"task": task, "optimizer": optimizer, "schedule": schedule, "average": average}
    first, checkpoint, saved, losses = 0, out / "checkpoint.pt", time.monotonic(), []
    if checkpoint.exists():
        states = torch.load(checkpoint, weights_only=True)
        first = states.pop("step")
        for name, state in states.items():
            stateful[name].load_state_dict(state)
    for step in range(first, steps):
        torch.manual_seed(step)
        chosen, times = torch.randint(len(task.images), (task.batch_size,)), torch.randint(1000, (task.batch_size,))
        images = task.images[chosen]
        if task.mirrored:
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
        noise = torch.randn_like(images)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = task.predict(scheduler.add_noise(images, noise, times), times, chosen)
        loss = (predicted.float() - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        average.step(weights)
        losses.append(loss.item())
        if len(losses) == 100:
            print(f"step {step + 1} of {steps}: loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
        if step + 1 == steps or time.monotonic() - saved > 60 * minutes_between_saves:
            part = checkpoint.with_suffix(".part")
            torch.save({name: each.state_dict() for name, each in stateful.items()} | {"step": step + 1}, part)
            part.replace(checkpoint)
            saved = time.monotonic()
    average.copy_to(weights)
    task.transformer.half()  # half the size on disk; the small parts stay as they are
    task.pipeline().save_pretrained(out)
    print(f"the pipeline is in {out}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, help="parquet file with the columns image, and label or text")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--steps", type=int, help="training steps; by default the task's own")
    options = parser.parse_args()
    if options.data is None and options.task != "digits":
        parser.error(f"give the data of {options.task}: --data FILE.parquet")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    task = TASKS[options.task](options.data)
    train(task, options.steps or task.steps, options.out)


if __name__ == "__main__":
    main()
