"""A run on two processes that measure together leaves one process's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import config

TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
#: Of the machine and its clock.
OWN = {"seconds", "name", "versions", "wandb"}


@pytest.mark.parametrize("name", ["joint/relaxed", pytest.param("attention/visual1", marks=pytest.mark.slow)])
def test_every_number_of_the_summary(name: str, maxmargin: Any) -> None:
    words = ("fit", "--config", config(name), "--trainer.max_steps", "40")
    one, two = maxmargin(*words).summary, maxmargin(*words, *TWO).summary
    assert one.keys() == two.keys()
    for key in one:
        if key.split("/")[-1] not in OWN and not key.startswith("monitor/"):
            number = isinstance(one[key], float)
            assert two[key] == (pytest.approx(one[key], rel=1e-10, abs=1e-10) if number else one[key]), key
