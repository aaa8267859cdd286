"""Stored policies of stock pipelines: a small JSON file, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub import HfApi, hf_hub_download
from pydantic import TypeAdapter
from torch import nn
from typing_extensions import Self

from adadiff.policies import ExitPolicy
from adadiff.policies.stored import EXIT_POLICY, CalibrationContext, StoredPolicy
from adadiff.stock.costs import LayerCosts
from adadiff.utils.files import model_folder
from adadiff.utils.fingerprints import fingerprint, sampled_fingerprint, settings_of
from adadiff.utils.hub import require_on_hub


@dataclass(frozen=True)
class StockContext(CalibrationContext):
    """The pipeline and the call that a policy was calibrated for.

    Args:
        pipeline: Name of the pipeline's class.
        scheduler_settings: Configuration of the scheduler.
        adapters: Names of the active adapters, such as LoRA.
        arguments: Arguments of the calls, as far as they are plain values.
        shapes: Shapes of what the transformers predict for one row.
        costs: FLOPs of the parts of each transformer, by its name: the fields of `LayerCosts`.
    """

    pipeline: str = ""
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def stored(self, policy: ExitPolicy, goal: Mapping[str, float], found: Mapping[str, Any]) -> StockPolicy:
        return StockPolicy(policy, self, goal, found)


@dataclass(frozen=True)
class StockPolicy(StoredPolicy):
    """A policy calibrated for a stock pipeline, with what it belongs to; see `StoredPolicy`.

    Examples:
        >>> found = adadiff.calibrate(pipe, prompts, compute=0.55, num_inference_steps=28)  # doctest: +SKIP
        >>> found.stored.save(Path("policy"))  # doctest: +SKIP
        >>> found.stored.push_to_hub("someone/policy")  # doctest: +SKIP
        >>> adadiff.enable(pipe, "someone/policy")  # doctest: +SKIP
    """

    context: ClassVar[type[CalibrationContext]] = StockContext
    calibrated_for: StockContext

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load a policy from a folder, from a packaged model, or from a repository of the Hugging Face Hub.

        Args:
            name: The folder, the name of the packaged model, or that of the repository, as `someone/policy`.

        Raises:
            InputError: If there is none, or it is invalid.

        Examples:
            >>> StockPolicy.from_pretrained("digits-dit").calibrated_for.pipeline
            'DiTPipeline'
        """
        folder = Path(name) if Path(name).is_dir() else model_folder(name)
        if not folder.is_dir():
            require_on_hub(str(name), EXIT_POLICY)
            folder = Path(hf_hub_download(str(name), EXIT_POLICY)).parent
        return cls.load(folder)

    def push_to_hub(self, name: str, private: bool = False, token: str | None = None) -> str:
        """Store the policy in a repository of the Hugging Face Hub, made if there is none; return its address.

        Args:
            name: The repository, as `someone/policy`.
            private: Whether a new repository is private.
            token: Access token; by default that of `hf auth login`.
        """
        api = HfApi(token=token)
        address = api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            path = self.save(Path(folder))
            api.upload_file(path_or_fileobj=path, path_in_repo=EXIT_POLICY, repo_id=name)
        return str(address)

    @property
    def costs(self) -> dict[str, LayerCosts]:
        """FLOPs of the parts of each transformer, by its name."""
        return TypeAdapter(dict[str, LayerCosts]).validate_python(dict(self.calibrated_for.costs))

    def differences_from(self, pipe: Any, transformers: Sequence[tuple[str, nn.Module]]) -> list[str]:
        """List, as short phrases, what differs in a pipeline from the one that the policy was calibrated for.

        Args:
            pipe: The pipeline.
            transformers: Its transformers with their names.
        """
        made_for = self.calibrated_for
        differences = []
        if weights_fingerprint(transformers) != made_for.weights:
            differences.append("other weights, or weights in another precision")
        scheduler = type(pipe.scheduler).__name__
        if scheduler != made_for.scheduler:
            differences.append(f"scheduler {scheduler} in place of {made_for.scheduler}")
        elif settings_of(pipe.scheduler) != made_for.scheduler_settings:
            differences.append("other settings of the scheduler")
        return differences

    def differences_in_call(
        self, guidance_scale: float | None, shape: tuple[int, ...], adapters: tuple[str, ...] = ()
    ) -> list[str]:
        """List, as short phrases, what differs in a call from those that the policy was calibrated for.

        Args:
            guidance_scale: Scale of the guidance; None if it is not known.
            shape: Shape of what a transformer predicts for one row.
            adapters: Names of the active adapters, which come and go while the policy is enabled.
        """
        made_for = self.calibrated_for
        differences = []
        if adapters != made_for.adapters:
            differences.append(f"adapters {_named(adapters)} in place of {_named(made_for.adapters)}")
        if guidance_scale is not None and guidance_scale != made_for.guidance_scale:
            differences.append(f"guidance scale {guidance_scale:g} in place of {made_for.guidance_scale:g}")
        if shape not in made_for.shapes:
            differences.append(f"predictions of shape {shape} in place of {' or '.join(map(str, made_for.shapes))}")
        return differences


def stock_context(
    pipe: Any,
    transformers: Sequence[tuple[str, nn.Module]],
    depth: int,
    evaluations: int,
    arguments: Mapping[str, Any],
    shapes: Sequence[tuple[int, ...]],
    costs: Mapping[str, LayerCosts],
) -> StockContext:
    """Describe the pipeline and the call that a policy is calibrated for.

    Args:
        pipe: The pipeline.
        transformers: Its transformers with their names.
        depth: Number of layers N.
        evaluations: Evaluations of the model in a trajectory.
        arguments: Arguments of the calls.
        shapes: Shapes of what the transformers predict for one row.
        costs: FLOPs of the parts of each transformer, by its name.
    """
    defaults = {name: each.default for name, each in inspect.signature(type(pipe).__call__).parameters.items()}
    steps = arguments.get("num_inference_steps", defaults.get("num_inference_steps", evaluations))
    guidance = arguments.get("guidance_scale", defaults.get("guidance_scale", 1.0))
    return StockContext(
        weights=weights_fingerprint(transformers),
        depth=depth,
        scheduler=type(pipe.scheduler).__name__,
        steps=steps,
        guidance_scale=float(guidance),
        evaluations=evaluations,
        pipeline=type(pipe).__name__,
        scheduler_settings=settings_of(pipe.scheduler),
        adapters=active_adapters(pipe),
        arguments={name: each for name, each in arguments.items() if isinstance(each, (bool, int, float, str))},
        shapes=tuple(shapes),
        costs={name: asdict(each) for name, each in costs.items()},
    )


def weights_fingerprint(transformers: Sequence[tuple[str, nn.Module]]) -> str:
    """Hash some of the weights of a pipeline's transformers."""
    return fingerprint([(name, sampled_fingerprint(unwrap_module(each))) for name, each in transformers])


def active_adapters(pipe: Any) -> tuple[str, ...]:
    """Return the names of a pipeline's active adapters, without those that are disabled."""
    transformer = unwrap_module(getattr(pipe, "transformer", None))
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        return ()
    disabled = [getattr(layer, "disable_adapters", None) for layer in transformer.modules()]  # of PEFT's layers, a bool
    return tuple(transformer.active_adapters()) if False in disabled else ()


def _named(adapters: Sequence[str]) -> str:
    return ", ".join(adapters) or "none"
