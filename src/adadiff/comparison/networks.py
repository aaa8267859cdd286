"""The networks of a comparison, all fine-tuned from one backbone for the same number of steps."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from adadiff.baselines import drop_layers, prune
from adadiff.comparison.config import CompareConfig
from adadiff.sampling import AdaptivePipeline
from adadiff.training import train
from adadiff.training.checkpoints import list_checkpoints
from adadiff.training.config import LossConfig
from adadiff.training.presets import PRESETS
from adadiff.utils.errors import InputError, suggestion
from adadiff.utils.files import atomic_folder, atomic_write, model_folder, packaged_models

FINISHED = "finished"


@dataclass(frozen=True)
class Recipe:
    """The recipe of a network: how it is cut out of the backbone and fine-tuned.

    Args:
        loss: The training loss, a key of `LOSSES`.
        estimator: The kind of uncertainty estimators.
        depth: Number of the backbone's layers to keep; None for all.
        compute: FLOPs that pruning keeps, over the backbone's.
    """

    loss: str = "plain"
    estimator: str = "concat"
    depth: int | None = None
    compute: float = 1.0

    @property
    def name(self) -> str:
        """The name of the network's folder, distinct among the recipes in use."""
        parts = [self.loss]
        if self.depth is not None:
            parts.append(f"depth-{self.depth}")
        if self.compute != 1:
            parts.append(f"compute-{self.compute:g}")
        return "-".join(parts)


LOSSES = {
    "plain": LossConfig(uncertainty_weight=0.0, layerwise_weight=0.0),
    "adadiff": LossConfig(),
    "released": LossConfig(ual_weighting="normalized"),
    "berxit": LossConfig(ual_weighting="uniform", alternating=True),
    "calm": LossConfig(ual_weighting="index", uncertainty_weight=0.0),
}

FULL = Recipe()
ADADIFF = Recipe("adadiff")
RELEASED = Recipe("released", estimator="token")
BERXIT = Recipe("berxit", estimator="shared_token")
CALM = Recipe("calm", estimator="saturation")


class Networks:
    """Trains the networks of a comparison on first use, and loads them.

    Args:
        config: The configuration of the comparison.
        folder: Folder of the networks, with one sub-folder each.
    """

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._loaded: dict[Recipe, AdaptivePipeline] = {}

    @property
    def backbone(self) -> Path:
        """The folder of the model that all networks start from.

        Raises:
            InputError: If the configured name is neither a model folder nor a packaged model.
        """
        folder = model_folder(self.config.backbone)
        if not (folder / "model_index.json").is_file():
            packaged = suggestion(str(folder), packaged_models())
            raise InputError(
                f"there is no model {folder}: set backbone to a model folder or a packaged model ({packaged})"
            )
        return folder

    def pipeline(self, recipe: Recipe) -> AdaptivePipeline:
        """Return the trained network in a pipeline with the comparison's scheduler; train it if it is missing."""
        if recipe not in self._loaded:
            pipeline = AdaptivePipeline.from_pretrained(
                self._trained(recipe), own_settings=False, scheduler=self.config.scheduler
            )
            nn.Module.to(pipeline.transformer, getattr(torch, self.config.dtype))
            self._loaded[recipe] = pipeline
        return self._loaded[recipe]

    def is_trained(self, recipe: Recipe) -> bool:
        """Return whether the network's training has finished."""
        return (self.folder / recipe.name / FINISHED).is_file()

    def _trained(self, recipe: Recipe) -> Path:
        out = self.folder / recipe.name
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{recipe.name}.lock"):
            if not self.is_trained(recipe):
                self._train(recipe, out)
        return out

    def _train(self, recipe: Recipe, out: Path) -> None:
        start = self._start(recipe)
        started = AdaptivePipeline.from_pretrained(start, own_settings=False).transformer.backbone
        estimator: dict[str, Any] = {"estimator": recipe.estimator}
        model = replace(
            PRESETS[self.config.preset].train.model,
            backbone=started.config,
            num_classes=started.num_classes,
            **estimator,
        )
        config = self.config.train_config(out, start, model=model, loss=LOSSES[recipe.loss])
        resume = bool(list_checkpoints(out))
        if not resume:
            shutil.rmtree(out, ignore_errors=True)  # killed before its first checkpoint
        train(replace(config, resume=resume))
        with atomic_write(out / FINISHED) as part:
            part.write_text("")

    def _start(self, recipe: Recipe) -> Path:
        """Return the folder of the model that training starts from: the backbone, or a network cut out of it."""
        if recipe.depth is None and recipe.compute == 1:
            return self.backbone
        out = self.folder / f"{recipe.name}-start"
        if not out.is_dir():
            pipeline = AdaptivePipeline.from_pretrained(self.backbone, own_settings=False)
            model = pipeline.transformer
            if recipe.depth is not None:
                model = drop_layers(model, recipe.depth)
            if recipe.compute != 1:
                model = prune(model, recipe.compute)
            with atomic_folder(out) as part:
                pipeline.with_parts(transformer=model).save_pretrained(part)
        return out
