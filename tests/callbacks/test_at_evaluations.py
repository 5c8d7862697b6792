"""EarlyStopping and ModelCheckpoint on numbers of a monitor: evaluations count, not the epochs between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer

from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.callbacks.at_evaluations import (
    CheckpointAtEvaluations,
    EarlyStoppingAtEvaluations,
    count_evaluations,
)
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError
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


def trained(callbacks: list[Callback], folder: Path, steps: int = 200, **words: Any) -> MarginMonitor:
    monitor = MarginMonitor(per_decade=2)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[*callbacks, monitor],
        enable_checkpointing=any(isinstance(x, ModelCheckpoint) for x in callbacks),
    )  # fmt: skip
    trainer.fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_relaxed"), **words)
    trainer.save_checkpoint(folder / "end.ckpt")
    return monitor


def test_patience_counts_evaluations_from_python_too(tmp_path: Path) -> None:
    """Up to 60 epochs lie between two evaluations, and before the first one the key is not defined."""
    grows, falls = EarlyStopping("norm/attention", mode="max", patience=1), EarlyStopping("norm/attention", patience=2)
    monitor = trained([grows], tmp_path)
    assert monitor.history[-1]["step"] == 200
    assert not monitor.message.startswith("Stopped early")
    monitor = trained([falls], tmp_path)
    assert [falls.wait_count, len([row for row in monitor.history if row["step"]])] == [2, 3]
    step = monitor.history[-1]["step"]
    assert monitor.message.startswith(f"Stopped early at step {step} of 200: Monitored metric norm/attention did not")


def test_a_number_that_is_never_logged_is_refused_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="EarlyStopping watches 'ensemble/global', which this run does not log"):
        trained([EarlyStopping("ensemble/global")], tmp_path)


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


def stopped(folder: Path, **options: Any) -> EarlyStopping:
    """A callback that has stopped a run, whose checkpoint is ``end.ckpt``."""
    stop = EarlyStopping("norm/attention", **options)
    trained([stop], folder)
    assert stop.stopping_reason_message
    return stop


@pytest.mark.parametrize(
    ("options", "others", "word"),
    [
        ({"patience": 2}, {"patience": 1000}, "raise its patience above 2"),
        ({"mode": "max", "stopping_threshold": 1e-9}, {"mode": "max"}, "change its stopping_threshold"),
        ({"divergence_threshold": 1e-9}, {"patience": 1000}, "change its divergence_threshold"),
    ],
)
def test_a_run_that_has_stopped_early_goes_on_by_another_word_alone(
    options: dict[str, Any], others: dict[str, Any], word: str, tmp_path: Path
) -> None:
    before = stopped(tmp_path, **options)
    with pytest.raises(InputError, match=f"EarlyStopping has ended this run .*; to go on {word}"):
        trained([EarlyStopping("norm/attention", **options)], tmp_path, ckpt_path=tmp_path / "end.ckpt")
    now = EarlyStopping("norm/attention", **others)
    monitor = trained([now], tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert now.patience == others.get("patience", 3), "the user's word counts"
    assert now.wait_count >= before.wait_count, "the checkpoint's state does"
    assert monitor.history[-1]["step"] == 200
    assert not monitor.message.startswith("Stopped early")


def test_a_run_that_has_stopped_early_is_not_trained_a_step_more(maxmargin: Any) -> None:
    def words(patience: int) -> tuple[str, ...]:
        stop = callback("EarlyStopping", monitor="norm/attention", mode="min", patience=patience)
        return (*WORDS, "--trainer.max_steps", "1000", "--trainer.callbacks", stop)

    run = maxmargin(*words(3))
    steps, rows = run.summary["steps"], (run.run_dir / "metrics.csv").read_text()
    go_on = ("--run_dir", str(run.run_dir), "--ckpt_path", "last")
    again = maxmargin(*words(3), *go_on)
    assert again.status == 2
    assert "EarlyStopping has ended this run" in again.error
    assert (run.run_dir / "metrics.csv").read_text() == rows
    assert maxmargin(*words(5), *go_on).status == 0
    later = json.loads((run.run_dir / "summary.json").read_text())
    assert later["steps"] > steps
    assert later["message"].startswith(f"Stopped early at step {later['steps']} of 1,000:")


def test_a_time_that_is_used_up(tmp_path: Path) -> None:
    trained([Timer({"seconds": 0.001}, interval="step")], tmp_path)
    with pytest.raises(InputError, match=r"trainer\.max_time: all 0.001 s were used"):
        trained([Timer({"seconds": 0.001}, interval="step")], tmp_path, ckpt_path=tmp_path / "end.ckpt")
    monitor = trained([Timer({"hours": 1})], tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert monitor.history[-1]["step"] == 200


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_lower_number_of_best_checkpoints_counts_when_a_run_goes_on(mode: str, tmp_path: Path) -> None:
    def best(most: int) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, "best-{step}", monitor="norm/attention", mode=mode, save_top_k=most,
                               every_n_train_steps=1)  # fmt: skip

    trained([best(3)], tmp_path, steps=50)
    first = {path.name for path in tmp_path.glob("best*")}
    later = best(1)
    trained([later], tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert len(later.best_k_models) == 1
    # The norm grows: of max the newest is the best, and of min the first.
    assert later.best_model_path.endswith("step=200.ckpt" if mode == "max" else "step=1.ckpt")
    new = {path.name for path in tmp_path.glob("best*")} - first
    assert new == ({"best-step=200.ckpt"} if mode == "max" else set())


def test_a_checkpoint_knows_the_callback_by_lightnings_name(tmp_path: Path) -> None:
    plain, ours = EarlyStopping("norm/attention"), EarlyStopping("norm/attention")
    count_evaluations([ours])
    assert ours.state_key == plain.state_key
    assert ours._legacy_state_key.startswith("EarlyStoppingAtEvaluations"), "of earlier checkpoints"


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
