"""Arguments of a sampling as diffusers' users write them, brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadiff.errors import InputError
from adadiff.exits import ExitPolicy, NeverExit, ThresholdExit
from adadiff.ranges import shown


def label_list(labels: Any, batch_size: int | None) -> list[Any]:
    """Class labels as a list: of one label, as many as there are images.

    Args:
        labels: A name or an index for all images, or a list, tuple, numpy array or torch tensor of one for each.
        batch_size: Number of images, where it is known; else one label is for one image.
    """
    if isinstance(labels, (Tensor, np.ndarray)):
        labels = labels.tolist()
    return list(labels) if isinstance(labels, (list, tuple, range)) else [labels] * (batch_size or 1)


def text_list(texts: str | Sequence[str], batch_size: int | None) -> list[str]:
    """Prompts as a list: of one text, as many as there are images, or 1 where their number is not known.

    Raises:
        InputError: If something else than text is among them.
    """
    listed = [texts] * (batch_size or 1) if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple, np.ndarray)) or not all(isinstance(text, str) for text in listed):
        raise InputError(f"{shown(texts)} is no prompt: give a text, or a list of one text for each image")
    return list(listed)


def chosen_policy(tau: Any, policy: ExitPolicy | None) -> ExitPolicy:
    """The policy of a call: the given one, or that of a threshold, a number or one per step; by default never to leave.

    Raises:
        InputError: If both are given, or either is something else.
    """
    if tau is not None and policy is not None:
        raise InputError("give either tau or a policy, not both")
    if policy is not None and not isinstance(policy, ExitPolicy):
        raise InputError(f"the policy is {shown(policy)}: give an ExitPolicy, or a threshold as tau")
    return policy or (NeverExit() if tau is None else ThresholdExit(tau))


def checked_generator(generator: Any, batch_size: int) -> torch.Generator | list[torch.Generator] | None:
    """The source of noise of a call: one generator, or a list of one for each image.

    Raises:
        InputError: If it is something else, or there are not as many as images.
    """
    several = list(generator) if isinstance(generator, (list, tuple)) else None
    given = several or ([] if generator is None else [generator])
    if not all(isinstance(each, torch.Generator) for each in given):
        raise InputError(
            f"the generator is {shown(generator)}: give a torch.Generator, or a list of one for each image"
        )
    if several is not None and len(several) != batch_size:
        raise InputError(f"there are {len(several)} generators for {batch_size} images: give one, or one each")
    return generator if several is None else several
