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
from adadiff.policies.stored import EXIT_POLICY, CalibrationContext, StoredPolicy, policy_folder
from adadiff.stock.costs import LayerCosts
from adadiff.utils.errors import InputError
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
        >>> found.stored.save("policy")  # doctest: +SKIP
        >>> found.stored.push_to_hub("someone/policy")  # doctest: +SKIP
        >>> adadiff.enable(pipe, "someone/policy")  # doctest: +SKIP
    """

    context: ClassVar[type[CalibrationContext]] = StockContext
    calibrated_for: StockContext

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load a policy from a folder, from a packaged model, or from a repository of the Hugging Face Hub.

        Args:
            name: The folder or the file in it, the name of the packaged model, or that of the repository, as
                `someone/policy`.

        Raises:
            InputError: If there is none, it is invalid, or it belongs to a model of adadiff's own.

        Examples:
            >>> StockPolicy.from_pretrained("digits-dit").calibrated_for.pipeline
            'DiTPipeline'
        """
        given = Path(name)
        if given.is_file() and given.name == EXIT_POLICY:
            given = given.parent
        folder = policy_folder(given)
        if not folder.is_dir():
            require_on_hub(str(name), EXIT_POLICY)
            folder = Path(hf_hub_download(str(name), EXIT_POLICY)).parent
        stored = cls.load(folder)
        if not stored.calibrated_for.pipeline:
            raise InputError(f"the policy of {name} belongs to a model of adadiff's own, not to a diffusers pipeline")
        return stored

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
        made_for, name = self.calibrated_for, type(pipe).__name__
        differences = []
        if name != made_for.pipeline:
            differences.append(f"{name} in place of {made_for.pipeline}")
        if weights_fingerprint(transformers) != made_for.weights:
            differences.append("other weights, or weights in another precision")
        return differences

    def differences_in_call(self, pipe: Any, shape: tuple[int, ...]) -> list[str]:
        """List, as short phrases, what differs in a pipeline's running call from those that the policy was made for.

        The scheduler and the adapters count here, since they come and go while the policy is enabled.

        Args:
            pipe: The pipeline.
            shape: Shape of what a transformer predicts for one row.
        """
        made_for, adapters, scheduler = self.calibrated_for, active_adapters(pipe), type(pipe.scheduler).__name__
        differences = []
        if scheduler != made_for.scheduler:
            differences.append(f"scheduler {scheduler} in place of {made_for.scheduler}")
        elif settings_of(pipe.scheduler) != made_for.scheduler_settings:
            differences.append("other settings of the scheduler")
        if adapters != made_for.adapters:
            differences.append(f"adapters {_named(adapters)} in place of {_named(made_for.adapters)}")
        wanted = {**call_defaults(pipe), "guidance_scale": made_for.guidance_scale, **made_for.arguments}
        for name, value in guidance_arguments(pipe).items():
            if isinstance(wanted[name], (int, float)) and value != wanted[name]:
                differences.append(f"{name.replace('_', ' ')} {value:g} in place of {wanted[name]:g}")
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
    given = {**call_defaults(pipe), **arguments}
    guidance = given.get("guidance_scale")
    return StockContext(
        weights=weights_fingerprint(transformers),
        depth=depth,
        scheduler=type(pipe.scheduler).__name__,
        steps=given.get("num_inference_steps", evaluations),
        guidance_scale=1.0 if guidance is None else float(guidance),  # Qwen-Image's is None
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


def guidance_arguments(pipe: Any) -> dict[str, float]:
    """Return the numbers that set the guidance of a pipeline's running call, by the names of the call's arguments.

    They are read where the call keeps them, since not every pipeline stores them as attributes.
    """
    frame, code = inspect.currentframe(), inspect.unwrap(type(pipe).__call__).__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    values = {} if frame is None else frame.f_locals
    names = [name for name in call_defaults(pipe) if "guidance" in name or "cfg" in name]
    return {name: values[name] for name in names if isinstance(values.get(name), (int, float))}


def call_defaults(pipe: Any) -> dict[str, Any]:
    """Return the arguments of a pipeline's call with their default values."""
    return {name: each.default for name, each in inspect.signature(type(pipe).__call__).parameters.items()}


def _named(adapters: Sequence[str]) -> str:
    return ", ".join(adapters) or "none"
