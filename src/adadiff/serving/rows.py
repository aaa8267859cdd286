"""The session rows of running samples, parted and joined as their samples run in different calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from adadiff.runtime import Denoiser, Session

Row = tuple[int, bool]
"""A sample's number, and whether it is the unconditional row of its pair."""


class SessionRows:
    """Keeps what is remembered of every running sample, in as few sessions as were last called together.

    While the same samples run in every call, their session is handed out and taken back without a copy.

    Args:
        denoiser: The denoiser.

    Examples:
        >>> from adadiff import AdaptiveModel
        >>> small = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2}
        >>> rows = SessionRows(AdaptiveModel(sample_size=8, in_channels=1, backbone_config=small))
        >>> rows.put(*rows.take([(0, False), (1, False)]))
        >>> order, session = rows.take([(2, False), (1, False)])  # sample 1 as remembered, sample 2 as new
        >>> order, len(session), len(rows)
        ([(1, False), (2, False)], 2, 1)
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._parts: list[tuple[list[Row], Session]] = []

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self._parts)

    def take(self, rows: Iterable[Row]) -> tuple[list[Row], Session]:
        """Take some rows out: return them in the order in which their session holds them, which is not the given one.

        Rows that are not kept yet begin, with nothing remembered.
        """
        wanted = dict.fromkeys(rows)
        taken: list[tuple[list[Row], Session]] = []
        parts: list[tuple[list[Row], Session]] = []
        for part in self._parts:
            for target, inside in ((taken, True), (parts, False)):
                selected = _selected(part, [place for place, row in enumerate(part[0]) if (row in wanted) == inside])
                if selected is not None:
                    target.append(selected)
        self._parts = parts
        known = {row for own, _ in taken for row in own}
        new = [row for row in wanted if row not in known]
        if new:
            taken.append((new, self.denoiser.session(len(new))))
        order, session = taken[0]
        for more, other in taken[1:]:
            order, session = [*order, *more], session.join(other)
        return order, session

    def put(self, rows: list[Row], session: Session) -> None:
        """Keep rows, in the order in which their session holds them."""
        self._parts.append((rows, session))

    def drop(self, rows: Iterable[Row]) -> None:
        """Forget rows; those that are not kept are ignored."""
        dropped = set(rows)
        selected = (
            _selected(part, [place for place, row in enumerate(part[0]) if row not in dropped]) for part in self._parts
        )
        self._parts = [part for part in selected if part is not None]


def _selected(part: tuple[list[Row], Session], places: list[int]) -> tuple[list[Row], Session] | None:
    """Return some rows of a part, the part itself if they are all, or None if there are none."""
    rows, session = part
    if len(places) == len(rows):
        return part
    return ([rows[place] for place in places], session.select(torch.tensor(places))) if places else None
