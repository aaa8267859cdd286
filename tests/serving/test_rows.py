"""The rows of sessions that are parted and joined: each keeps its memory."""

from __future__ import annotations

import random

from adadiff.serving.rows import SessionRows
from tests.conftest import make_model


def test_every_row_keeps_what_was_remembered_of_it() -> None:
    """Each row counts its calls; so does a dict. Rows begin, run in changing company, and end."""
    source, rows = random.Random(0), SessionRows(make_model())
    calls: dict[tuple[int, bool], int] = {}
    begun = 0
    for _ in range(300):
        if source.random() < 0.4:
            calls[begun, False] = 0
            begun += 1
        if calls and source.random() < 0.3:
            calls.setdefault((source.choice(list(calls))[0], True), 0)
        if calls and source.random() < 0.2:
            ended = source.choice(list(calls))
            rows.drop([ended, (-1, False)])
            del calls[ended]
        if not calls:
            continue
        wanted = source.sample(list(calls), source.randint(1, len(calls)))
        order, session = rows.take(wanted)
        assert sorted(order) == sorted(wanted)
        assert len(session) == len(order)
        counts = session.memory.tensor("calls", ())
        assert counts.tolist() == [calls[row] for row in order]
        counts += 1
        for row in order:
            calls[row] += 1
        rows.put(order, session)
    assert len(rows) == sum(count > 0 for count in calls.values())


def test_rows_that_stay_together_are_not_copied() -> None:
    rows = SessionRows(make_model())
    rows.put(*rows.take([(0, False), (1, False)]))
    order, session = rows.take([(1, False), (0, False)])
    rows.put(order, session)
    assert rows.take([(0, False), (1, False)]) == (order, session)
