"""Optimizers of each part, schedules of the rate that are stepped, clipping and accumulation."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import LambdaLR, StepLR

from lightning_maxmargin import JointSelection
from lightning_maxmargin.callbacks.margin_monitor import norms_of
from lightning_maxmargin.data import RandomData, RandomInstances
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.ensemble import Ensemble
from lightning_maxmargin.optim import MirrorDescent, NormalizedGD, OptimizerPerGroup, SignDescent, SpectralDescent
from lightning_maxmargin.probe.geometry import Norms
from tests.conftest import config

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
    "enable_model_summary": False, "max_epochs": -1,
}  # fmt: skip


def fit(model: pl.LightningModule, steps: int, data: Any = None, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(max_steps=steps, **{**QUIET, **options})
    trainer.fit(model, datamodule=data or RandomData(n=6, T=4, d=5, seed=1))
    return trainer


def rates(trainer: pl.Trainer) -> list[float]:
    return [group["lr"] for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize("gradient", ["exact", "centred"])
def test_each_part_has_its_own_optimizer(gradient: Any) -> None:
    model = JointSelection(
        5, gradient=gradient, optimizer=SpectralDescent, head_optimizer=SignDescent, attention_lr=0.5, head_lr=0.25
    )
    trainer = fit(model, 1)
    assert isinstance(trainer.optimizers[0], OptimizerPerGroup)
    assert trainer.global_step == 1
    # From zero weights the head moves alone: in every entry as far.
    assert model.selector.head.abs().tolist() == pytest.approx([0.25] * 5)
    assert norms_of(trainer.optimizers) == Norms("spectral", "linf")
    fit(model, 30)
    assert float(model.selector.direction.detach().norm()) > 0


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.SGD])
def test_muon_for_the_matrix_and_another_for_the_head(other: Any) -> None:
    model = JointSelection(
        5, gradient="exact", optimizer=lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.0),
        head_optimizer=lambda p: other(p, lr=0.1),
    )  # fmt: skip
    trainer = fit(model, 200)
    assert norms_of(trainer.optimizers).attention == "spectral"
    assert trainer.callback_metrics["train/loss"] < 0.2


def test_a_vector_in_muon_is_refused() -> None:
    with pytest.raises(ValueError, match="2D parameters"):
        JointSelection(5, optimizer=torch.optim.Muon)


def test_an_optimizer_of_a_head_that_is_not_trained_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.head_optimizer: with train attention"):
        JointSelection(5, train="attention", head_optimizer=SignDescent)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("gradient", ["exact", "centred"])
def test_a_schedule_is_stepped_at_every_step(gradient: Any, batch_size: int | None) -> None:
    model = JointSelection(
        5, gradient=gradient, attention_lr=1.0, head_lr=2.0, lr_scheduler=lambda o: LambdaLR(o, lambda t: 1 / (1 + t))
    )
    trainer = fit(model, 9, RandomData(n=6, T=4, d=5, seed=1, batch_size=batch_size))
    assert rates(trainer) == pytest.approx([0.1, 0.2])
    # Of steps lr / (1 + t) no more than their sum is walked.
    assert float(model.selector.head.norm()) <= 2 * sum(1 / (1 + t) for t in range(9))


def test_rates_that_decay_walk_less() -> None:
    lengths = []
    for schedule in (None, lambda o: LambdaLR(o, lambda t: (1 + t) ** -0.5)):
        model = JointSelection(5, attention_lr=1.0, head_lr=1.0, lr_scheduler=schedule)
        fit(model, 100)
        lengths.append(float(model.selector.head.norm()))
    assert lengths[1] < 0.3 * lengths[0]


class Returned(JointSelection):
    """A user's own, that returns a schedule as Lightning has it."""

    schedule: ClassVar[Any] = {"interval": "epoch", "frequency": 1}

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1, 0.5), **self.schedule}}


@pytest.mark.parametrize(
    ("schedule", "steps", "halvings"),
    [
        ({"interval": "step"}, 6, 6),
        ({"interval": "step", "frequency": 2}, 6, 3),
        ({"interval": "epoch"}, 6, 2),  # of three batches
        ({"interval": "epoch", "frequency": 2}, 6, 1),
    ],
)
def test_a_schedule_that_a_subclass_returns_is_stepped(schedule: Any, steps: int, halvings: int) -> None:
    model = Returned(5, attention_lr=1.0, head_lr=1.0)
    model.schedule = schedule
    trainer = fit(model, steps, RandomData(n=6, T=4, d=5, seed=1, batch_size=2))
    assert rates(trainer) == pytest.approx([0.5**halvings] * 2)


def test_a_plateau_looks_at_what_it_names() -> None:
    def make(monitor: str) -> JointSelection:
        return JointSelection(
            5, lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor=monitor, factor=0.5, patience=0, threshold=1e9)
        )

    trainer = fit(make("train/loss"), 5, RandomData(n=6, T=4, d=5, seed=1, batch_size=6))
    assert rates(trainer)[0] < 0.1
    with pytest.raises(InputError, match="looks at nope, which is not logged"):
        fit(make("nope"), 5)
    with pytest.raises(InputError, match="does not say what it looks at"):
        fit(JointSelection(5, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau), 5)


def test_a_plateau_is_stepped_where_lightning_steps() -> None:
    model = JointSelection(
        5, gradient="centred", attention_lr=1.0, head_lr=1.0,
        lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="train/loss", factor=0.5, patience=0, threshold=1e9),
    )  # fmt: skip
    trainer = fit(model, 5, gradient_clip_val=1.0)
    assert model.automatic_optimization
    assert rates(trainer)[0] < 1.0


def test_a_schedule_of_an_ensemble() -> None:
    lengths = []
    for schedule in (None, lambda o: LambdaLR(o, lambda t: (1 + t) ** -0.5)):
        model = Ensemble(5, update="normalized", lr_scheduler=schedule)
        trainer = fit(model, 50, RandomInstances(B=3, n=4, T=3, d=5), precision="64-true")
        lengths.append(model.state.head.norm(dim=0))
    assert (lengths[1] < 0.4 * lengths[0]).all()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(51**-0.5)


def test_gradients_are_clipped() -> None:
    def moved(clip: float | None) -> float:
        model = JointSelection(5, gradient="centred", optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
        fit(model, 1, gradient_clip_val=clip)
        return float(model.selector.head.norm())

    free = moved(None)
    assert free > 0.05
    assert moved(0.01) == pytest.approx(0.01, rel=1e-4)
    assert moved(100.0) == pytest.approx(free, rel=1e-6)


def test_gradients_are_accumulated() -> None:
    def trained(batch_size: int | None, accumulate: int) -> tuple[torch.Tensor, int]:
        model = JointSelection(5, gradient="centred", optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
        data = RandomData(n=6, T=4, d=5, seed=1, batch_size=batch_size, shuffle=False)
        trainer = fit(model, 4, data, accumulate_grad_batches=accumulate, precision="64-true")
        return model.selector.head.detach().clone(), trainer.global_step

    (whole, steps), (parts, same) = trained(6, 1), trained(2, 3)
    assert steps == same == 4
    assert torch.allclose(whole, parts, rtol=1e-12)


def test_exact_directions_are_not_clipped_in_silence() -> None:
    with pytest.raises(Exception, match="gradient clipping"):
        fit(JointSelection(5), 1, gradient_clip_val=1.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.optimizer", "torch.optim.Muon", "--model.gradient", "exact"), "model.optimizer"),
        (("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"), "does not say what it looks at"),
    ],
)
def test_wrong_words_are_a_line(words: tuple[str, ...], said: str, maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/random"), "--trainer.max_steps", "3", *words)
    assert outcome.status == 2
    assert said in outcome.error


def test_from_the_command_line(maxmargin: Any) -> None:
    words = (
        "--model.optimizer", "torch.optim.Muon", "--model.optimizer.weight_decay", "0", "--model.gradient", "exact",
        "--model.query", "own", "--model.head_optimizer", "MirrorDescent", "--model.head_optimizer.p", "3",
        "--model.lr_scheduler", "torch.optim.lr_scheduler.ExponentialLR", "--model.lr_scheduler.gamma", "0.99",
    )  # fmt: skip
    outcome = maxmargin(
        "fit", "--config", config("joint/random"), "--data.n", "4", "--data.d", "8", "--trainer.max_steps", "20", *words
    )
    assert outcome.status == 0, outcome.err
    assert (outcome.summary["svm/norm"], outcome.summary["svm/head_norm"]) == ("spectral", "3.0")


def test_mirror_in_one_and_the_default_in_the_other() -> None:
    model = JointSelection(
        5, optimizer=NormalizedGD, head_optimizer=lambda p: MirrorDescent(p, p=3.0), attention_lr=0.1, head_lr=0.1
    )
    assert model.gradient == "exact"
    trainer = fit(model, 20)
    assert norms_of(trainer.optimizers) == Norms("l2", 3.0)
