"""All evaluations of a run, the last one included, stay within its budget: counted on a clock that only work moves."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import HeadMonitor, JointSelection, MarginMonitor
from lightning_maxmargin.callbacks import budget, delivery, evaluation_schedule, monitor, worker
from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.data import PaperData, RandomData
from lightning_maxmargin.probe.sampled import draw_rows
from lightning_maxmargin.probe.selector import Probe
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.callbacks.test_margin_monitor import trainer

SAMPLE_SECONDS, ALL_SECONDS = 1.0, 10.0


class Clock:
    """Stands still but for what is counted as work."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    thread_time = process_time = perf_counter


class Costly(Monitor):
    """On this clock the sample of 500 takes a second, 5,000 take ten, and fewer less."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        super().__init__(background=False, samples=500, **settings)
        self.clock, self.sizes = clock, list[int | None]()

    def size(self) -> Size:
        return Size(125_000_000, 12_500_000, "", 500)

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> int | None:
        return samples

    def measure(self, step: int, snapshot: int | None, readings: None) -> Measured:
        self.sizes.append(snapshot)
        self.clock.now += ALL_SECONDS if snapshot is None else SAMPLE_SECONDS * snapshot / 500
        return Measured({})


class Train(pl.Callback):
    """What a step costs on this clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += self.seconds


def watched(monkeypatch: pytest.MonkeyPatch, step: float, **settings: Any) -> tuple[Costly, float, float]:
    """The monitor after 400 steps, what all its evaluations have cost and how long the run took."""
    clock = Clock()
    for module in (budget, delivery, monitor, worker):
        monkeypatch.setattr(module, "time", clock)
    costly = Costly(clock, **settings)
    run = trainer([Train(clock, step), costly], 400)
    run.fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight"))
    assert costly.final_seconds is not None
    return costly, costly.seconds + costly.final_seconds, clock.now


@pytest.mark.parametrize(
    ("step", "evaluations", "last"),
    [
        (0.01, 1, 0),
        pytest.param(0.03, 1, 0, marks=pytest.mark.slow),
        (0.2, 3, 500),
        (1.0, 10, None),
        pytest.param(10.0, 19, None, marks=pytest.mark.slow),
    ],
)
def test_all_evaluations_together_are_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, step: float, evaluations: int, last: int | None
) -> None:
    costly, spent, run = watched(monkeypatch, step)
    assert spent <= 0.05 * run
    assert costly.sizes[:-1] == [500] * (evaluations - 1)
    assert costly.sizes[-1] == last if last != 0 else 50 <= costly.sizes[-1] < 500  # type: ignore[operator]
    assert costly.history[-1]["step"] == 400


def test_a_run_too_short_for_any_has_a_last_one_of_fifty(monkeypatch: pytest.MonkeyPatch) -> None:
    costly, spent, run = watched(monkeypatch, 0.001)
    assert 0.05 * run < spent == pytest.approx(0.1)
    assert costly.sizes == [50]


def test_a_budget_of_one_makes_all_and_the_last_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    costly, spent, run = watched(monkeypatch, 0.01, budget=1.0)
    assert costly.sizes[-1] is None
    assert len(costly.history) > 20
    assert spent > 0.5 * run


def test_that_evaluations_are_left_out_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning_maxmargin"):
        watched(monkeypatch, 0.2)
    said = [record.getMessage() for record in caplog.records if "monitor.budget: 1" in record.getMessage()]
    assert said == [
        "Costly: an evaluation takes about 0.94 s, so from step 1 on they are made as 0.05 of the run's time allows "
        "it; monitor.budget: 1 makes all",
        "Costly: These numbers are of 500 sequences, for 0.05 of the run's time does not cover the 10 s that an "
        "evaluation of everything takes; monitor.budget: 1 makes it.",
    ]


def test_a_short_run_ends_with_the_first_of_the_sequences_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_schedule, "FEWEST", 10)
    watching, module = MarginMonitor(budget=1e-9, samples=20), JointSelection(dim=32)
    trainer([watching], 5, precision="64-true").fit(module, datamodule=RandomData(n=100))
    assert watching.snapshot is not None
    data, rows = RandomData(n=100).sequences("train"), draw_rows(100, 10, seed=0)
    assert rows is not None
    expected = Probe(data[rows]).measure(module.selector)
    values = watching.snapshot.values
    assert torch.equal(watching.snapshot.selected, expected.selected)
    assert values["margin/attention"] == expected.values["margin/attention"]
    # Few sequences are separable whatever their labels: selection and head are those of all.
    whole = Probe(data).measure(module.selector).values
    assert whole["status/head"] == "infeasible"
    assert expected.values["status/head"] == "certified"
    for name in ("status/head", "margin/head", "margin/head_met", "margin/head_tenth", "attention/entropy"):
        assert values[name] == whole[name]
    for name in ("relative_margin/head", "direction_gap/head", "direction_gap/relaxed", "direction_gap/rate_coupled"):
        assert values[name] is None
    assert (values["monitor/samples"], values["svm/limit"]) == (10, "strict")


def test_a_short_run_ends_with_the_first_samples_of_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_schedule, "FEWEST_OF_HEADS", 4)
    found = []
    for settings in ({"budget": 1e-9}, {"samples": 4, "budget": 1.0}):
        torch.manual_seed(0)
        heads = HeadMonitor(SEPARATE, some_data().tensors, **settings)  # type: ignore[arg-type]
        run = trainer([heads], 3, precision="64-true")
        run.fit(Foreign(), torch.utils.data.DataLoader(some_data(), 4))
        assert heads.heads is not None
        assert {len(selected) for selected in heads.heads.selected.values()} == {4}
        found.append(heads.heads.values)
    numbers = [{key: x for key, x in values.items() if isinstance(x, float)} for values in found]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
