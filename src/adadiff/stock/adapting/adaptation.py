"""Exit heads and uncertainty estimators fitted for a stock pipeline, and the file that stores them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.utils.torch_utils import unwrap_module
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adadiff.policies import ExitPolicy, FixedExit, NeverExit, ScheduleExit, TableExit
from adadiff.stock.adapting.projection import applied
from adadiff.stock.costs import LayerCosts
from adadiff.stock.stored import weights_fingerprint
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write

logger = logging.getLogger(__name__)

ADAPTATION = "adaptation.safetensors"
TENSORS = ("heads", "estimators", "errors")


@dataclass(frozen=True)
class Settings:
    """What is stored of a transformer's exits beside their tensors.

    Args:
        projection: Name of the last linear map of the transformer, whose output the heads add to.
        exits: The early exit layers, in 1..N-1, in order.
        times: The mean time of each bin, (bins,): what the transformer was given.
        costs: FLOPs of the parts of a call.
        row_inputs: Which arguments have an entry for each row of the batch, by their paths.
        separable: Whether rows of a batch may exit by themselves. It is not so where layers hand more to later ones
            than what they return.
    """

    projection: str
    exits: tuple[int, ...]
    times: tuple[float, ...]
    costs: LayerCosts
    row_inputs: Mapping[str, bool]
    separable: bool


@dataclass(frozen=True)
class FittedExits:
    """The exit heads and uncertainty estimators of one transformer.

    Args:
        settings: What they belong to.
        heads: What each head adds to the output of the projection: weights, and biases in the last column,
            (exits, bins, out, width + 1) float32.
        estimators: The estimators' weights, the biases last, (exits, bins, width + 1) float32.
        errors: Mean squared errors over the mean square of the full prediction, on samples the heads were not fitted
            on: with the model's own head and with the fitted one, (exits, bins, 2) float32; NaN where nothing was
            measured.
    """

    settings: Settings
    heads: Tensor
    estimators: Tensor
    errors: Tensor

    def head(self, layer: int, time: float) -> Tensor | None:
        """Return the head of an exit at a time, (out, width + 1); None after layers for which none was fitted."""
        exits = self.settings.exits
        return self._at(time, self.heads[exits.index(layer)]) if layer in exits else None

    def uncertainty(self, layer: int, time: float, tokens: Tensor) -> Tensor:
        """Return the uncertainty of each row after an exit layer, (rows,) float32 in [0, 1), on the CPU.

        It is tanh(r), with r the error that is expected of the prediction relative to its size: the estimator predicts
        log r, the logarithm of |full - early| / |full|, from the mean of a row's tokens.

        Args:
            layer: The exit layer.
            time: The time that the transformer is given.
            tokens: What the projection reads, (rows, tokens, width).
        """
        estimator = self._at(time, self.estimators[self.settings.exits.index(layer)])
        return applied(estimator[None], tokens.float().mean(1))[:, 0].exp().tanh().cpu()

    def check(self, model: nn.Module, policy: ExitPolicy) -> None:
        """Raise InputError if the exits do not fit a transformer, or the policy needs what they do not have."""
        settings, (out, width) = self.settings, self.heads.shape[2:]
        projection = dict(model.named_modules()).get(settings.projection)
        if [getattr(projection, name, 0) for name in ("in_features", "out_features")] != [width - 1, out]:
            raise InputError(
                f"the adaptation was fitted for another transformer: {type(model).__name__} has no linear map "
                f"{settings.projection} from {width - 1} to {out} values"
            )
        if not (known_in_advance(policy) or settings.separable):
            raise InputError(
                f"{type(model).__name__} hands more from layer to layer than what they return, so samples cannot exit "
                "by themselves: use a policy that decides in advance, such as CorrectedScheduleExit"
            )
        if isinstance(policy, TableExit):
            layers = {layer for row in policy.thresholds for layer, tau in enumerate(row, 1) if tau}
            if missing := sorted(layers - set(settings.exits)):
                raise InputError(
                    f"the table has thresholds at layer {missing[0]}, and the adaptation's exits are after layers "
                    f"{', '.join(map(str, settings.exits))}"
                )

    def _at(self, time: float, values: Tensor) -> Tensor:
        """Interpolate between the bins, so that nothing jumps from one step to the next; `values` are (bins, ...)."""
        times = self.settings.times
        below = max((bin_ for bin_, each in enumerate(times) if each <= time), key=times.__getitem__, default=None)
        above = min((bin_ for bin_, each in enumerate(times) if each >= time), key=times.__getitem__, default=None)
        if below is None or above is None or times[below] == times[above]:
            return values[below if above is None else above]
        return values[below].lerp(values[above], (time - times[below]) / (times[above] - times[below]))


@dataclass(frozen=True)
class Adaptation:
    """Exit heads and uncertainty estimators of a stock pipeline's transformers, as `adadiff.adapt` returns them.

    Args:
        transformers: What was fitted for each transformer, by its name.
        weights: Fingerprint of the transformers' weights.

    Examples:
        >>> adaptation = adadiff.adapt(pipe, prompts, num_inference_steps=28)  # doctest: +SKIP
        >>> adaptation.save("adaptation")  # doctest: +SKIP
        >>> adadiff.enable(pipe, adadiff.ThresholdExit(0.1), adaptation="adaptation")  # doctest: +SKIP
    """

    transformers: Mapping[str, FittedExits]
    weights: str

    def errors(self) -> dict[int, tuple[float, float]]:
        """Return the relative squared error after each exit, with the model's own head and with the fitted one.

        They are averaged over time and transformers, and were measured on samples the heads were not fitted on.
        """
        layers = sorted({layer for fitted in self.transformers.values() for layer in fitted.settings.exits})
        found = {}
        for layer in layers:
            own = [
                fitted.errors[fitted.settings.exits.index(layer)]
                for fitted in self.transformers.values()
                if layer in fitted.settings.exits
            ]
            plain, with_head = torch.cat(own).nanmean(0).tolist()
            found[layer] = (plain, with_head)
        return found

    def save(self, folder: str | Path) -> Path:
        """Store it in a folder, as one safetensors file; return the file.

        Args:
            folder: The folder, made if there is none.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{part}": getattr(fitted, part).contiguous()
            for name, fitted in self.transformers.items()
            for part in TENSORS
        }
        settings = {name: asdict(fitted.settings) for name, fitted in self.transformers.items()}
        metadata = {"weights": self.weights, "transformers": json.dumps(settings)}
        with atomic_write(folder / ADAPTATION) as part_path:
            save_file(tensors, part_path, metadata)
        return folder / ADAPTATION

    @classmethod
    def load(cls, folder: str | Path) -> Adaptation:
        """Load what `save` stored; nothing in the file is executed.

        Args:
            folder: The folder.

        Raises:
            InputError: If there is none, or it is invalid.
        """
        path = Path(folder) / ADAPTATION
        if not path.is_file():
            raise InputError(f"{folder} holds no adaptation: there is no {ADAPTATION} in it")
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                settings = TypeAdapter(dict[str, Settings]).validate_json(metadata["transformers"])
                transformers = {
                    name: FittedExits(each, *(stored.get_tensor(f"{name}.{part}") for part in TENSORS))
                    for name, each in settings.items()
                }
                adaptation = cls(transformers, metadata["weights"])
        except (SafetensorError, ValidationError, KeyError) as error:
            raise InputError(f"{path} is damaged, or holds no adaptation: adapt again") from error
        for fitted in transformers.values():
            _check_shapes(path, fitted)
        return adaptation

    def check(self, transformers: Sequence[tuple[str, nn.Module]], policy: ExitPolicy) -> None:
        """Warn if it was fitted for other weights of the pipeline's transformers.

        Args:
            transformers: The transformers with their names.
            policy: The policy that is to be followed.

        Raises:
            InputError: If it does not fit the transformers, or the policy needs what it does not have.
        """
        for name, component in transformers:
            if name not in self.transformers:
                raise InputError(f"the adaptation was fitted for another pipeline: it has no exits for {name}")
            self.transformers[name].check(unwrap_module(component), policy)
        if weights_fingerprint(transformers) != self.weights:
            logger.warning("the adaptation was fitted for other weights, or for weights in another precision")


def _check_shapes(path: Path, fitted: FittedExits) -> None:
    settings, heads = fitted.settings, fitted.heads
    exits, bins = len(settings.exits), len(settings.times)
    fits = (
        heads.ndim == 4
        and heads.shape[:2] == (exits, bins)
        and fitted.estimators.shape == (exits, bins, heads.shape[3])
        and fitted.errors.shape == (exits, bins, 2)
        and all(each.dtype == torch.float32 for each in (heads, fitted.estimators, fitted.errors))
        and all(math.isfinite(time) for time in settings.times)
    )
    if not (fits and exits and bins):
        raise InputError(f"{path} is damaged: its tensors do not fit each other")


def known_in_advance(policy: ExitPolicy) -> bool:
    """Return whether a policy asks for no uncertainties: all rows exit after the same layer."""
    return isinstance(policy, (NeverExit, FixedExit, ScheduleExit))
