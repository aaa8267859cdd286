"""Processes that share a task: they see each other, or are refused."""

import pytest
from accelerate import PartialState

from adadiff import InputError
from adadiff.utils.processes import process_state
from tests.conftest import run_launched


def test_one_process_is_the_first_and_only_one():
    assert (process_state().num_processes, process_state().is_main_process) == (1, True)


def test_launched_processes_see_each_other():
    output = run_launched()
    assert "process 0 of 2" in output
    assert "process 1 of 2" in output


def test_launched_processes_that_each_act_as_the_main_process_are_refused(monkeypatch):
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched, but this one sees only 1"):
        process_state()
