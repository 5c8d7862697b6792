"""The short form of ``stopped_wandb``: a service that is stopped while the run is opened, and each kind of server."""

from __future__ import annotations

import pytest

from tests.reliability.stopped_wandb import SERVERS, SIGNALS, wrong_with

WAYS = [*SIGNALS, *SERVERS]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_wandb_that_fails_costs_no_training(way: str) -> None:
    assert wrong_with(way, moment=0.0, slowness=2.0) is None
