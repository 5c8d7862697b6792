"""The short form: a few kills, and a disk that is full for a while."""

from __future__ import annotations

import random

import pytest

from tests.reliability import disk, kills
from tests.reliability.scenario import assert_none_failed


@pytest.mark.slow
def test_killed_at_a_random_time() -> None:
    assert_none_failed(kills.trial, 4, seed=0)


@pytest.mark.slow
def test_a_full_disk() -> None:
    assert_none_failed(disk.trial, 3, seed=0)


def test_a_row_that_is_missing_twice_or_other_is_seen() -> None:
    rows = [{"step": str(step), "norm/attention": f"{step}.5"} for step in (1, 2, 3)]
    assert kills.wrong_rows(rows, rows) is None
    assert kills.wrong_rows(rows, [*rows, {"step": "3.5", "norm/attention": "1"}]) is None
    for found in (rows[:2], [*rows, rows[0]], [*rows[:2], {**rows[2], "norm/attention": "9"}]):
        random.Random(0).shuffle(found)
        assert str(kills.wrong_rows(rows, found)).startswith("silent")
