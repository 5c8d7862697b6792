"""The short form: a few kills, a disk that is full for a while, and some hundred steps that leave nothing behind."""

from __future__ import annotations

import random

import pytest

from tests.reliability import disk, kills, soak
from tests.reliability.scenario import assert_none_failed


@pytest.mark.slow
def test_killed_at_a_random_time() -> None:
    assert_none_failed(kills.trial, 3, seed=1)


@pytest.mark.parametrize("cases", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk(cases: int) -> None:
    assert_none_failed(disk.trial, cases, seed=cases)


@pytest.mark.slow
def test_steps_leave_nothing_behind() -> None:
    assert soak.trial(random.Random(0), steps=1_000) is None


@pytest.mark.parametrize(("grown", "told"), [((0, 0), None), ((9_000, 0), "memory"), ((0, 1), "open files")])
def test_what_grows_is_seen(grown: tuple[int, int], told: str | None) -> None:
    looks = [(100_000 + i * grown[0] // 40, 12 + i * grown[1] // 80) for i in range(100)]
    found = soak.wrong_looks(looks)
    assert found is None if told is None else told in str(found)


def test_a_row_that_is_missing_twice_or_other_is_seen() -> None:
    rows = [{"step": str(step), "norm/attention": f"{step}.5"} for step in (1, 2, 3)]
    assert kills.wrong_rows(rows, rows) is None
    assert kills.wrong_rows(rows, [*rows, {"step": "3.5", "norm/attention": "1"}]) is None
    for found in (rows[:2], [*rows, rows[0]], [*rows[:2], {**rows[2], "norm/attention": "9"}]):
        random.Random(0).shuffle(found)
        assert str(kills.wrong_rows(rows, found)).startswith("silent")
