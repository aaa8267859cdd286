"""Interleaved timing."""

from adadiff.utils.timing import interleaved_seconds


def test_rivals_take_turns_after_a_warm_up():
    calls = []
    seconds = interleaved_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 3, "b": 3}
