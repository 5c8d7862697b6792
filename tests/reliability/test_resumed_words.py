"""The short form: a dozen runs that go on with one more word."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from lightning_maxmargin.callbacks import Interrupt
from tests.reliability import resumed_words
from tests.reliability.scenario import assert_none_failed
from tests.reliability.words import Case


@pytest.mark.parametrize(("first", "cases"), [(0, 3), pytest.param(3, 9, marks=pytest.mark.slow)])
def test_words_of_a_run_that_goes_on(first: int, cases: int) -> None:
    assert_none_failed(resumed_words.trial, cases, seed=0, first=first)


def test_a_text_run_that_has_trained_nothing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model and its words would be written at the end of fit, before the summary."""

    def is_over(self: Interrupt, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    folder = tmp_path / "work"
    shutil.copytree(resumed_words.saved("text/finetune"), folder)
    monkeypatch.setattr(Interrupt, "on_train_start", is_over)
    words = ["--config", "run/config.yaml", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_steps", "4"]
    case = Case(words, ("nothing was trained",), run_dir="run")
    assert resumed_words.judge(case, folder, {}) is None


def test_a_run_that_saves_nothing_is_judged_by_its_summary(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(resumed_words.saved("joint/relaxed"), folder)
    kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    for where in (["run", "--ckpt_path", "last"], ["new", "--ckpt_path", "run/checkpoints/last.ckpt"]):
        words = ["--config", "run/config.yaml", "--run_dir", *where, "--trainer.max_steps", "4"]
        said = ("trainer.enable_checkpointing", False)
        case = Case([*words, "--trainer.enable_checkpointing=false"], ("trainer.",), said=said, run_dir=where[0])
        assert resumed_words.judge(case, folder, kept) is None


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
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {}, **now}))
    torch.save({"global_step": resumed_words.SAVED_AT}, tmp_path / "checkpoints" / "last.ckpt")
    kept = {"model": {"init_args": {"lr": 0.1}}, "seed_everything": 3}
    assert told in str(resumed_words.wrong_run(Case([], (), said=said), tmp_path, kept))
