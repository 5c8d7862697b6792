"""Rates that decay as a power of the step: by hand, resumed, and from the command line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import PowerDecay, Signum
from lightning_maxmargin.optim.power_decay import power_decay
from tests.conftest import config


def make() -> torch.optim.Optimizer:
    w, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return Signum([{"params": [w], "lr": 2.0}, {"params": [b], "lr": 0.5}])


def walked(optimizer: torch.optim.Optimizer, schedule: PowerDecay, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(("power", "scale"), [(0.5, 1.0), (1.0, 10.0), (0.0, 1.0)])
def test_every_group_decays_from_its_own_rate(power: float, scale: float) -> None:
    optimizer = make()
    found = walked(optimizer, PowerDecay(optimizer, power, scale), 5)
    wanted = [[lr / (1 + t / scale) ** power for lr in (2.0, 0.5)] for t in range(5)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))
    assert power_decay(3, power, scale) == pytest.approx(wanted[3][0] / 2)


def test_it_goes_on_where_it_was_saved() -> None:
    optimizer = make()
    schedule = PowerDecay(optimizer, 0.25)
    walked(optimizer, schedule, 7)
    other = make()
    resumed = PowerDecay(other, 0.25)
    resumed.load_state_dict(schedule.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert walked(other, resumed, 3) == walked(optimizer, schedule, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"power": -0.1}, "power is -0.1"),
        ({"power": 1.5}, "the rates sum up"),
        ({"scale": 0.0}, "scale is 0.0"),
    ],
)
def test_powers_without_the_limit_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PowerDecay(make(), **options)


def test_from_the_command_line(maxmargin: Any) -> None:
    words = ("--model.optimizer", "Signum", "--model.lr_scheduler", "PowerDecay", "--model.lr_scheduler.power")
    outcome = maxmargin("fit", "--config", config("joint/random"), "--trainer.max_steps", "20", *words, "0.5")
    assert outcome.status == 0, outcome.err
    refused = maxmargin("fit", "--config", config("joint/random"), "--trainer.max_steps", "20", *words, "2")
    assert refused.status == 2
    assert "power is 2" in refused.error
