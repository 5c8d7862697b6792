"""EarlyStopping and ModelCheckpoint on numbers of a monitor: evaluations count, not the epochs between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.callbacks.at_evaluations import (
    CheckpointAtEvaluations,
    EarlyStoppingAtEvaluations,
    count_evaluations,
)
from lightning_maxmargin.data import PaperData
from tests.conftest import config

WORDS = ("fit", "--config", config("joint/relaxed"), "--model.inner_steps", "10", "--model.parametrization", "p")


def callback(kind: str, **options: Any) -> str:
    return f"[{{class_path: {kind}, init_args: {json.dumps(options)}}}]"


def test_a_number_that_rises_at_every_evaluation_never_stops_a_run(maxmargin: Any) -> None:
    """Between two evaluations lie up to 20 epochs."""
    stop = callback("EarlyStopping", monitor="norm/attention", mode="max", patience=10)
    run = maxmargin(*WORDS, "--trainer.max_steps", "1000", "--trainer.callbacks", stop)
    assert run.status == 0, run.err
    assert run.summary["steps"] == 1000
    assert not run.summary["message"].startswith("Stopped early")


def test_patience_counts_evaluations(maxmargin: Any) -> None:
    stop = callback("EarlyStopping", monitor="norm/attention", mode="min", patience=3)
    run = maxmargin(*WORDS, "--trainer.max_steps", "1000", "--trainer.callbacks", stop)
    assert run.status == 0, run.err
    steps = run.summary["steps"]
    history = torch.load(run.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    seen = [row["step"] for row in next(x for name, x in history.items() if "MarginMonitor" in name)["history"]]
    # The first is the best, three more are not better, and a run that stops measures once more where it has not.
    assert len([step for step in seen if step]) <= 5
    assert run.summary["message"].startswith(f"Stopped early at step {steps} of 1,000: Monitored metric norm/attention")


@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint"])
def test_a_number_that_is_not_defined_yet(kind: str, maxmargin: Any) -> None:
    # At a norm of 0 no direction has a gap.
    options: dict[str, Any] = {"monitor": "direction_gap/rate_coupled", "mode": "min"}
    options |= {"patience": 50} if kind == "EarlyStopping" else {"every_n_train_steps": 10, "filename": "best"}
    run = maxmargin(*WORDS, "--trainer.max_steps", "300", "--trainer.callbacks", callback(kind, **options))
    assert run.status == 0, run.err
    assert run.summary["steps"] == 300


def trained(callbacks: list[Callback], folder: Path, steps: int = 200) -> MarginMonitor:
    monitor = MarginMonitor(per_decade=2)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[monitor, *callbacks],
        enable_checkpointing=any(isinstance(x, ModelCheckpoint) for x in callbacks),
    )  # fmt: skip
    count_evaluations(trainer.callbacks)  # type: ignore[attr-defined]
    trainer.fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_relaxed"))
    return monitor


def test_the_best_evaluation_is_saved_once(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best-{step}", monitor="norm/attention", mode="max", every_n_train_steps=1,
                           save_top_k=-1)  # fmt: skip
    monitor = trained([best], tmp_path)
    assert isinstance(best, CheckpointAtEvaluations)
    steps = sorted(int(path.stem.split("step=")[1]) for path in tmp_path.glob("best*.ckpt"))
    assert steps == [row["step"] for row in monitor.history if row["step"]]


def test_what_others_log_is_left_to_lightning(tmp_path: Path) -> None:
    callbacks: list[Callback] = [EarlyStopping("train/loss", patience=1000, check_on_train_epoch_end=True)]
    trained(callbacks, tmp_path, steps=5)
    assert type(callbacks[0]) is EarlyStopping

    class Mine(EarlyStopping):
        pass

    mine: list[Callback] = [Mine("norm/attention"), EarlyStopping("norm/attention")]
    count_evaluations(mine)
    assert [type(x) for x in mine] == [Mine, EarlyStoppingAtEvaluations]


def test_a_resumed_run_does_not_count_an_evaluation_twice() -> None:
    first, later = EarlyStopping("norm/attention"), EarlyStopping("norm/attention")
    count_evaluations([first, later])
    trainer: Any = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monitor = MarginMonitor()
    monitor.history = [{"step": 1}]
    trainer.callbacks, trainer.callback_metrics["norm/attention"] = [monitor], torch.tensor(1.0)
    assert first.is_new(trainer)  # type: ignore[attr-defined]
    assert not first.is_new(trainer)  # type: ignore[attr-defined]
    later.load_state_dict(first.state_dict())
    assert not later.is_new(trainer)  # type: ignore[attr-defined]
