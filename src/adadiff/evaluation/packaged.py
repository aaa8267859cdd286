"""The feature networks that come with the package."""

from __future__ import annotations

from adadiff.utils.files import PRETRAINED

PACKAGED = {name: PRETRAINED / f"{name}-features" for name in ("small", "unlabelled", "statistics")}
"""Folders of the networks, by name."""
