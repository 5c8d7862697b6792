"""The short form: some runs of several processes, lost ones, and numbers that are none."""

from __future__ import annotations

import pytest

from tests.reliability import processes
from tests.reliability.scenario import assert_none_failed


@pytest.mark.slow
def test_several_processes_are_one() -> None:
    assert_none_failed(processes.equal_trial, 4, seed=0)


@pytest.mark.parametrize("cases", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lost_process_is_named(cases: int) -> None:
    assert_none_failed(processes.lost_trial, cases, seed=cases)


def test_numbers_that_are_none_stop_the_run() -> None:
    assert_none_failed(processes.poisoned_trial, 20, seed=0)
