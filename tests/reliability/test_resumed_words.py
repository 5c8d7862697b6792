"""The short form: a dozen runs that go on with one more word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.reliability import resumed_words
from tests.reliability.scenario import assert_none_failed
from tests.reliability.words import Case


def test_words_of_a_run_that_goes_on() -> None:
    assert_none_failed(resumed_words.trial, 12, seed=0)


@pytest.mark.parametrize(
    ("said", "now", "told"),
    [
        (("model.lr", 0.2), {"model": {"init_args": {"lr": 0.1}}}, "silent: model.lr is 0.1, not 0.2"),
        (("model.lr", 0.2), {"model": {"init_args": {"lr": 0.2}}}, "the checkpoint's was 0.1"),
        (("seed_everything", 4), {"seed_everything": 4}, "the checkpoint's was 3"),
        (("data.n", 4), {"data": {"n": 4}}, "silent: at step 2, begun at 2"),
    ],
)
def test_a_run_that_does_otherwise_is_seen(said: Any, now: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(now))
    torch.save({"global_step": resumed_words.SAVED_AT}, tmp_path / "checkpoints" / "last.ckpt")
    kept = {"model": {"init_args": {"lr": 0.1}}, "seed_everything": 3}
    assert told in str(resumed_words.wrong_run(Case([], (), said=said), tmp_path, kept))
