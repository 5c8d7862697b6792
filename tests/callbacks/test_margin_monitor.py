"""MarginMonitor in a plain Trainer, as a Lightning user has it."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.data import PaperData, RandomData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import measured_by
from lightning_maxmargin.optim import AcceleratedMargin
from lightning_maxmargin.probe.selector import Probe
from lightning_maxmargin.schedule import next_step


def trainer(callbacks: list[Any], steps: int = 100, **kwargs: Any) -> pl.Trainer:
    settings = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=callbacks, **{**settings, **kwargs})


def test_looks_at_the_geometric_schedule_whatever_the_inner_steps() -> None:
    histories = []
    for inner in (1, 7, 1000):
        monitor = MarginMonitor(per_decade=4)
        trainer([monitor]).fit(JointSelection(dim=2, inner_steps=inner), datamodule=PaperData("joint_tight"))
        histories.append(monitor.history)
    assert [row["step"] for row in histories[0]] == [1, 2, 3, 6, 10, 18, 32, 56, 100]
    for key in set(measured_by("selector")) - {"monitor/seconds", "monitor/final_seconds"}:
        assert (
            [row[key] for row in histories[0]]
            == [row[key] for row in histories[1]]
            == [row[key] for row in histories[2]]
        )


def test_schedule_is_strictly_increasing() -> None:
    step, seen = 0, []
    while step < 10_000:
        step = next_step(step, 16)
        seen.append(step)
    assert seen == sorted(set(seen))
    assert len(seen) == pytest.approx(4 * 16, abs=12)


def test_every_key_is_measured_and_none_is_nan() -> None:
    monitor = MarginMonitor()
    trainer([monitor]).fit(JointSelection(dim=2), datamodule=PaperData("joint_relaxed"))
    for row in monitor.history:
        assert set(measured_by("selector")) <= set(row)
        assert not [k for k, v in row.items() if isinstance(v, float) and v != v]
    assert monitor.last["status/attention"] == "certified"


def test_numbers_are_float64_whatever_the_precision() -> None:
    monitor = MarginMonitor()
    model = JointSelection(dim=2, attention_lr=1.0, head_lr=1.0, optimizer=AcceleratedMargin)
    trainer([monitor], 400, precision="32-true").fit(model, datamodule=PaperData("joint_relaxed"))
    # A float32 1 - cos would be a multiple of 6e-8 or negative.
    gap = monitor.last["direction_gap/relaxed"]
    assert isinstance(gap, float)
    assert 0 < gap < 1e-8


def test_metrics_reach_checkpoints_and_early_stopping() -> None:
    t = trainer([MarginMonitor()])
    t.fit(JointSelection(dim=2), datamodule=PaperData("joint_tight"))
    assert float(t.callback_metrics["direction_gap/head"]) >= 0


def test_solutions_are_kept_while_the_selection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_maxmargin.svm as svm

    calls = []
    real = svm.solve_att_svm
    monkeypatch.setattr(svm, "solve_att_svm", lambda *a, **k: calls.append(1) or real(*a, **k))
    data = PaperData("joint_tight").sequences("train")
    model = TokenSelector(2, attention_init=[1.3, 0.3], head_init=[0.0, 1.0]).double()
    probe = Probe(data)
    first = probe.measure(model)
    with torch.no_grad():
        model.W *= 2
    second = probe.measure(model)
    assert len(calls) == 1
    assert second.values["direction_gap/strict"] == pytest.approx(first.values["direction_gap/strict"], abs=1e-15)
    with torch.no_grad():
        model.W *= -1
    probe.measure(model)
    assert len(calls) == 2, "another selection is another problem"


def test_probe_at_the_solution_is_exact() -> None:
    model = TokenSelector(2, attention_init=[4.0, 1.0], head_init=[0.0, 3.0]).double()
    values = Probe(PaperData("joint_tight").sequences("train")).measure(model).values
    assert values["direction_gap/strict"] == pytest.approx(0, abs=1e-15)
    assert values["relative_margin/attention"] == pytest.approx(1, abs=1e-12)
    assert values["relative_margin/head"] == pytest.approx(1, abs=1e-12)
    # p_mm = (4/3, 1/3): margin 3 / sqrt(17); v_mm = (0, 1): margin 1.
    assert values["margin/attention"] == pytest.approx(3 / 17**0.5, abs=1e-12)
    assert values["margin/head"] == pytest.approx(1, abs=1e-12)
    assert values["selection/globally_optimal"] == values["selection/locally_optimal"] == 1


def test_infeasible_head_leaves_strict_alone() -> None:
    keys = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
    data = Sequences(keys, torch.tensor([1.0, -1.0], dtype=torch.float64))
    model = TokenSelector(2, attention_init=[5.0, 0.0], head_init=[1.0, 0.0]).double()
    values = Probe(data).measure(model).values
    assert values["status/head"] == "infeasible"
    assert values["direction_gap/head"] is None
    assert values["direction_gap/relaxed"] is None
    assert values["svm/limit"] == "strict"


def test_train_head_alone_is_about_the_pooled_inputs() -> None:
    monitor = MarginMonitor()
    model = JointSelection(dim=32, train="head", head_lr=1.0, optimizer=AcceleratedMargin)
    trainer([monitor], 1000, precision="64-true").fit(model, datamodule=RandomData(seed=1))
    assert monitor.last["norm/attention"] == 0
    assert monitor.last["direction_gap/head"] < 1e-5
    assert monitor.last["direction_gap/strict"] is None


def test_error_of_the_measurement_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "measure", lambda *a: 1 / 0)
    with pytest.raises(RuntimeError, match=r"MarginMonitor at step 1: ZeroDivisionError"):
        trainer([MarginMonitor()]).fit(JointSelection(dim=2), datamodule=PaperData("joint_tight"))


def test_a_module_without_a_selector_is_refused() -> None:
    class Other(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any: ...

    with pytest.raises(InputError, match="TokenSelector"):
        trainer([MarginMonitor()]).fit(Other(), datamodule=PaperData("joint_tight"))


def test_data_given_by_hand() -> None:
    data = PaperData("joint_tight")
    monitor = MarginMonitor(data=data.sequences("train"))
    trainer([monitor]).fit(JointSelection(dim=2), train_dataloaders=data.train_dataloader())
    assert monitor.last["status/attention"] == "certified"
