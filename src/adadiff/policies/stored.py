"""Stored exit policies: exit_policy.json in a model folder, with the sampling settings it was calibrated for.

A folder may hold policies for other budgets of compute beside it, each in a file of its own: exit_policy-0.45.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import Self

from adadiff.policies.base import POLICIES, ExitPolicy
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write, model_folder, read_json, weights_checksum
from adadiff.utils.modules import registered

EXIT_POLICY = "exit_policy.json"
OTHER_POLICIES = "exit_policy-*.json"
VERSION = 1


@dataclass(frozen=True)
class CalibrationContext:
    """The model and sampling settings that a policy was calibrated for.

    Args:
        weights: SHA-256 of the denoiser's weights; None for a model that was not loaded from a folder with checksums.
        depth: Number of layers N.
        scheduler: Short name of the scheduler, or the name of its class.
        steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance; 1 means no guidance.
        evaluations: Number of model evaluations in these steps, if the scheduler does not make exactly one per step.
            A policy counts evaluations.
    """

    weights: str | None
    depth: int
    scheduler: str
    steps: int
    guidance_scale: float
    evaluations: int | None = None

    @property
    def policy_steps(self) -> int:
        """The number of steps as a policy counts them: evaluations of the model."""
        return self.steps if self.evaluations is None else self.evaluations

    def stored(self, policy: ExitPolicy, goal: Mapping[str, float], found: Mapping[str, Any]) -> StoredPolicy:
        """Return a policy calibrated here in the form that is stored."""
        return StoredPolicy(policy, self, goal, found)


@dataclass(frozen=True)
class StoredPolicy:
    """A policy with the goal it was calibrated to, the settings it fits, and its measured results.

    Args:
        policy: The exit policy.
        calibrated_for: The model and sampling settings it fits.
        goal: The goal of the calibration, `compute`, `error` or `speedup`, with its value.
        found: Measurements on samples that were not used to choose the policy; shown to users, never computed with.
    """

    context: ClassVar[type[CalibrationContext]] = CalibrationContext

    policy: ExitPolicy
    calibrated_for: CalibrationContext
    goal: Mapping[str, float]
    found: Mapping[str, Any]

    def save(self, folder: str | Path, name: str = EXIT_POLICY) -> Path:
        """Write the policy's file into a folder, replacing an earlier one of that name; return its path.

        Args:
            folder: The folder of a model, or one for the policy, made if there is none.
            name: Name of the file.
        """
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        described = {
            "version": VERSION,
            "goal": dict(self.goal),
            "found": dict(self.found),
            "calibrated_for": asdict(self.calibrated_for),
            "policy": self.policy.describe(),
        }
        with atomic_write(path) as part:
            part.write_text(_readable({**described, "sha256": _digest(described)}) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path, name: str = EXIT_POLICY, model: Path | None = None) -> Self:
        """Load a policy's file from a model folder.

        Args:
            folder: The folder.
            name: Name of the file.
            model: The folder of the model that it is for, if it is another.

        Raises:
            InputError: If the file is missing or invalid, or was calibrated for other weights.
        """
        path = folder / name
        if not path.is_file():
            where = str(folder) if model is None else f"MODEL --out {folder}"
            raise InputError(f"{folder} holds no {name}: make one with adadiff calibrate {where} --compute 0.55")
        try:
            values = read_json(path)
            if values.pop("sha256", None) not in (None, _digest(values)):
                raise InputError('it was altered; delete its line "sha256" if the change is yours')
            if values["version"] != VERSION:
                raise InputError(f"it is of version {values['version']}, and this adadiff reads {VERSION}")
            stored = cls(
                policy_from(values["policy"]),
                TypeAdapter(cls.context).validate_python(values["calibrated_for"]),
                TypeAdapter(dict[str, float]).validate_python(values["goal"]),
                TypeAdapter(dict[str, Any]).validate_python(values["found"]),
            )
            stored.check()
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be used: {_reason(error)}; make it anew, or delete it") from error
        weights = weights_checksum((folder if model is None else model) / "transformer")
        if None not in (weights, stored.calibrated_for.weights) and weights != stored.calibrated_for.weights:
            raise InputError(
                f"{path} belongs to other weights than the folder's: make it anew, or delete it"
                if model is None
                else f"{path} belongs to other weights than those of {model}: name another policy"
            )
        return stored

    def check(self) -> None:
        """Raise InputError if the policy does not fit the settings that it is stored with."""
        self.policy.check(self.calibrated_for.depth, self.calibrated_for.policy_steps)

    def for_steps(self, num_steps: int) -> ExitPolicy:
        """Return the policy for `num_steps` evaluations, stretched if it was calibrated for another number."""
        return self.policy if num_steps == self.calibrated_for.policy_steps else self.policy.stretched(num_steps)

    def differences(self, scheduler: str, steps: int, guidance_scale: float) -> list[str]:
        """List, as short phrases, the sampling settings that differ from those the policy was calibrated for."""
        made_for = self.calibrated_for
        pairs = (
            ("scheduler", scheduler, made_for.scheduler),
            ("steps", steps, made_for.steps),
            ("guidance scale", guidance_scale, made_for.guidance_scale),
        )
        return [f"{name} {chosen} in place of {wanted}" for name, chosen, wanted in pairs if chosen != wanted]


def other_policies(folder: Path) -> list[str]:
    """Return the names of the files with a model folder's policies for other budgets than that of the default one."""
    return sorted(path.name for path in folder.glob(OTHER_POLICIES))


def save_policies(policies: Sequence[StoredPolicy], folder: Path) -> list[Path]:
    """Write policies into a model folder in place of all that it held: the first is the folder's default.

    Args:
        policies: One or several policies; all but the first have a budget of compute as their goal.
        folder: The folder.

    Returns:
        The files: `exit_policy.json` for the first, `exit_policy-0.45.json` for one with a goal of 0.45.
    """
    names = [EXIT_POLICY, *(OTHER_POLICIES.replace("*", f"{policy.goal['compute']:g}") for policy in policies[1:])]
    written = [policy.save(folder, name) for policy, name in zip(policies, names, strict=True)]
    for name in set(other_policies(folder)) - set(names):
        (folder / name).unlink()
    return written


def policy_folder(name: str | os.PathLike[str]) -> Path:
    """Return a policy's folder: `name` itself if it holds one, else the packaged model of that name, else `name`."""
    return Path(name) if (Path(name) / EXIT_POLICY).is_file() else model_folder(name)


def load_policy(folder: str | os.PathLike[str]) -> ExitPolicy:
    """Load the policy that `adadiff calibrate` stored in a model folder, or that of a packaged model by its name.

    Raises:
        InputError: If the policy is missing or invalid, or was calibrated for other weights.

    Examples:
        >>> type(load_policy("digits")).__name__
        'CorrectedScheduleExit'
    """
    return StoredPolicy.load(policy_folder(folder)).policy


def policy_from(description: Mapping[str, Any]) -> ExitPolicy:
    """Build a policy from its description, the output of `ExitPolicy.describe`.

    Raises:
        InputError: If its class is unknown, or its module was not imported, or a value is out of range.
        ValidationError: If a value is missing or of another type.
    """
    settings = dict(description)
    name = str(settings.pop("policy"))
    kind = registered(name, POLICIES, "policy")
    policy: ExitPolicy = TypeAdapter(kind).validate_python(settings)
    return policy


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _digest(described: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the values, independent of their order and layout in the file."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _readable(values: Mapping[str, Any]) -> str:
    """Format as JSON with each innermost list, such as a table's row, on one line."""
    text = json.dumps(values, indent=2)
    return re.sub(r"\[[^\[\]]+\]", lambda row: " ".join(row[0].split()), text)
