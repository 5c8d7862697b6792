"""Words of the commands beside fit, the short form; and each kind that once ended in a traceback."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.other_words import good, judge, trial
from tests.reliability.scenario import assert_none_failed
from tests.reliability.words import Case


@pytest.mark.parametrize(("first", "cases"), [(0, 3), pytest.param(3, 9, marks=pytest.mark.slow)])
def test_drawn_cases(first: int, cases: int) -> None:
    assert_none_failed(trial, cases, seed=5, first=first)


@pytest.mark.parametrize("seed", ["-7", str(2**32)])
@pytest.mark.parametrize("command", ["layers", "path", "evaluate", "compare"])
def test_seed_that_not_every_generator_takes(command: str, seed: str, tmp_path: Path) -> None:
    words = [command, *good(command, random.Random(0)), f"--seed={seed}"]
    assert judge(Case(words, (f"seed: {seed}; expected a number from 0",), refused=True), tmp_path) is None


@pytest.mark.parametrize(
    "words",
    [
        ["report", "r" * 300],
        ["evaluate", "r" * 300],
        ["compare", "r" * 300, "b"],
        ["fit", "--config", "r" * 300],
        ["layers", "--data.train", "r" * 300],
        ["layers", "--data.train", "rotten-tomatoes", "--data.encoder", "r" * 300],
    ],
)
def test_name_that_no_file_can_have(words: list[str], tmp_path: Path, maxmargin: Any) -> None:
    outcome = maxmargin(*words, plain=False)
    assert outcome.status == 2
    assert "rrrr" in outcome.error
    assert len(outcome.error) < 1000
    assert not any(tmp_path.iterdir())
