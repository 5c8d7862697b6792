"""Watching within a share of the run: when a monitor measures, on what, and that training does not wait for it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.callbacks import EnsembleMonitor, HeadMonitor
from lightning_maxmargin.callbacks import budget as budgets
from lightning_maxmargin.callbacks.budget import Budget, share_of
from lightning_maxmargin.callbacks.evaluation import Measured
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import PaperData, RandomData
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.sampled import SampledProbe, draw_rows
from lightning_maxmargin.probe.selector import Probe
from lightning_maxmargin.schedule import affordable
from lightning_maxmargin.svm.threads import one_thread
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.callbacks.test_margin_monitor import trainer
from tests.conftest import config

CLOCKS = ("monitor/seconds", "monitor/final_seconds", "monitor/lag_steps")


def without_clocks(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in history]


# --- the rule --------------------------------------------------------------------------------------------------------

costs = st.floats(0.0, 100.0)


@given(st.lists(st.tuples(costs, costs), max_size=60), st.floats(0.001, 0.999))
def test_what_is_spent_stays_within_the_share(turns: list[tuple[float, float]], share: float) -> None:
    """However the run goes on, if no evaluation costs more than expected."""
    spent = elapsed = 0.0
    for wait, cost in turns:
        elapsed += wait
        if affordable(spent, cost, elapsed, share):
            # In the background the run goes on; at worst it stands still meanwhile.
            spent += cost
        assert spent <= share * elapsed + 1e-9


@given(costs, costs, costs)
def test_a_budget_of_one_is_a_schedule_of_steps_alone(spent: float, expected: float, elapsed: float) -> None:
    assert affordable(spent, expected, elapsed, 1.0)


def test_an_evaluation_is_expected_to_cost_what_the_last_did_or_the_mean() -> None:
    clock = Budget()
    clock.start(0.05, numbers=12_000_000)
    assert clock.expected == pytest.approx(0.91), "a guess from the amount of data, before there is one"
    clock.spend(4.0)
    clock.spend(1.0)
    assert (clock.expected, clock.spent) == (2.5, 5.0)
    clock.spend(9.0)
    assert clock.expected == 9.0
    assert clock.refund() == 9.0
    assert (clock.spent, clock.evaluations) == (5.0, 2)


def test_small_problems_have_all_of_the_time() -> None:
    assert share_of(None, PaperData("joint_tight").sequences("train").keys.numel()) == 1.0
    assert share_of(None, 100_001) == 0.05


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [MarginMonitor, EnsembleMonitor, TextMonitor])
def test_a_budget_is_a_share(make: Any, budget: float) -> None:
    with pytest.raises(InputError, match=r"monitor.budget: .*; expected a share of the run's time"):
        make(budget=budget)


@pytest.mark.parametrize("make", [MarginMonitor, TextMonitor])
def test_samples_are_one_or_more(make: Any) -> None:
    with pytest.raises(InputError, match=r"monitor.samples: 0; expected a positive number"):
        make(samples=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--monitor.budget", "0"), "monitor.budget: 0.0; expected a share"),
        (("--monitor.budget", "1.5"), "monitor.budget: 1.5; expected a share"),
        (("--monitor.samples", "0"), "monitor.samples: 0; expected a positive number"),
    ],
)
def test_the_command_line_says_it_in_one_line(words: tuple[str, ...], said: str, maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/tight"), *words)
    assert outcome.status == 2
    assert said in outcome.error
    assert "Traceback" not in outcome.err
    assert not outcome.run_dir.exists()


# --- off the training path -------------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Notes how long each step took, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if not self._last:
            self._last = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class Slow(MarginMonitor):
    """Its evaluations end when they are let go."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(budget=0.5, **settings)
        self.go, self.begun = threading.Event(), 0

    def measure(self, step: int, snapshot: Any, readings: Any) -> Measured:
        self.begun += 1
        assert self.go.wait(60)
        return super().measure(step, snapshot, readings)


class LetGo(pl.Callback):
    """Ends what runs at this step."""

    def __init__(self, monitor: Slow, step: int) -> None:
        self.monitor, self.step = monitor, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.monitor.go.set()
            pending = self.monitor._pending
            assert pending is not None
            assert pending.future is not None
            pending.future.result()


def affords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two that decide, thread and budget, leaves the thread."""
    monkeypatch.setattr(Budget, "covers_another", lambda self: True)


def test_a_slow_solve_delays_no_step_and_says_how_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    affords(monkeypatch)
    monitor = Slow()
    model = JointSelection(dim=2, inner_steps=1)
    # The solve of step 1 lasts until step 50 has been made: were training to wait for it, it would never end.
    trainer([monitor, LetGo(monitor, 50)], 80).fit(model, datamodule=PaperData("joint_tight"))
    first = monitor.history[0]
    assert first["step"] == 1
    assert first["monitor/lag_steps"] == 50
    assert monitor.history[1]["step"] == 51, "what was due meanwhile is made as soon as the thread is free"
    assert monitor.history[-1]["step"] == 80
    assert monitor.history[-1]["monitor/lag_steps"] == 0


@pytest.mark.parametrize("make", [lambda b: MarginMonitor(background=b, budget=1.0), "heads"])
def test_the_background_finds_the_numbers_of_the_foreground(make: Any) -> None:
    histories = []
    for background in (False, True):
        torch.manual_seed(0)
        if make == "heads":
            monitor: Any = HeadMonitor(SEPARATE, some_data().tensors, background=background, budget=1.0)
            loader = torch.utils.data.DataLoader(some_data(), 4)
            trainer([monitor], 12, precision="64-true").fit(Foreign(), loader)
        else:
            monitor = make(background)
            trainer([monitor], 100, precision="64-true").fit(JointSelection(dim=32), datamodule=RandomData(n=40))
        histories.append(without_clocks(monitor.history))
    assert histories[0] == histories[1]
    assert len(histories[0]) > 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_the_training_thread_changes_no_number(dtype: torch.dtype) -> None:
    """Lightning sets it around every step in true precisions, for all threads."""
    data, model = RandomData(n=40, T=5).sequences("train"), JointSelection(dim=32, attention_init="normal").selector
    expected = SampledProbe(data, 20, 0, "both", Norms(), None).measure(model, 20).values
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = SampledProbe(data, 20, 0, "both", Norms(), None).measure(model, 20).values
    finally:
        torch.set_default_dtype(before)
    assert found == expected


def test_an_error_in_the_background_ends_the_run_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    affords(monkeypatch)
    monkeypatch.setattr(Probe, "measure", lambda *a: 1 / 0)
    monitor = MarginMonitor(budget=0.5)
    with pytest.raises(RuntimeError, match=r"MarginMonitor at step 1: ZeroDivisionError: division by zero"):
        trainer([monitor], 100_000).fit(JointSelection(dim=2), datamodule=PaperData("joint_tight"))


def test_an_error_of_the_last_evaluation_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "measure", lambda *a: 1 / 0)
    with pytest.raises(RuntimeError, match=r"MarginMonitor at step 20: ZeroDivisionError"):
        trainer([MarginMonitor(budget=1e-9)], 20).fit(JointSelection(dim=2), datamodule=PaperData("joint_tight"))


def test_a_checkpoint_holds_the_evaluation_under_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    affords(monkeypatch)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                assert monitor._pending is not None
                monitor.go.set()
                trainer.save_checkpoint(tmp_path / "x.ckpt")
                assert monitor._pending is None

    monitor = Slow()
    trainer([monitor, Save()], 5).fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight"))
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    state = next(v for k, v in content["callbacks"].items() if "Slow" in k)
    assert [row["step"] for row in state["history"]] == [1]
    assert [step for step, _, _ in state["paths"]] == [0, 1]
    again = MarginMonitor()
    again.load_state_dict(state)
    assert again.seconds == state["seconds"] > 0


def test_an_error_found_while_saving_leaves_a_checkpoint_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    affords(monkeypatch)
    monkeypatch.setattr(Probe, "measure", lambda *a: 1 / 0)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                monitor.go.set()
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    monitor = Slow()
    with pytest.raises(RuntimeError, match="Slow at step 1: ZeroDivisionError"):
        trainer([monitor, Save()], 100).fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight"))
    assert (tmp_path / "x.ckpt").is_file()


def test_no_thread_is_left_behind() -> None:
    trainer([MarginMonitor()], 10).fit(JointSelection(dim=2), datamodule=PaperData("joint_tight"))
    end = time.monotonic() + 10
    while time.monotonic() < end and any(t.name.startswith("monitor") for t in threading.enumerate()):
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name.startswith("monitor")]


def test_two_threads_share_one_limit_of_blas_threads() -> None:
    from threadpoolctl import threadpool_info

    def limits() -> list[int]:
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    before, first, second = limits(), one_thread(), one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(limits()) == {1}, "the second is inside still"
    second.__exit__(None, None, None)
    assert limits() == before


# --- the last evaluation ---------------------------------------------------------------------------------------------


class Watched(MarginMonitor):
    """Notes how many sequences each evaluation was of."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.counts: list[int] = []

    def keep(self, step: int, details: Any) -> None:
        super().keep(step, details)
        self.counts.append(len(details.selected))


@pytest.mark.parametrize("length", [{"max_steps": 20}, {"max_steps": -1, "max_epochs": 5}])
def test_the_last_evaluation_is_of_everything_whatever_the_samples(length: dict[str, int]) -> None:
    monitor = Watched(samples=5, budget=1.0, background=False)
    trainer([monitor], **length).fit(JointSelection(dim=32), datamodule=RandomData(n=12, batch_size=3))
    assert set(monitor.counts[:-1]) == {5}
    assert monitor.counts[-1] == 12
    assert monitor.history[-1]["step"] == 20
    assert monitor.history[0]["monitor/final_seconds"] is None
    assert monitor.last["monitor/final_seconds"] > 0
    earlier = [row["monitor/seconds"] for row in monitor.history]
    assert monitor.last["monitor/seconds"] == earlier[-2], "it is no part of the others"


def test_a_run_that_is_stopped_is_measured_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 10

    for samples, steps in ((5, [8, 10, 10]), (12, [6, 8, 10])):
        monitor = Watched(samples=samples, budget=1.0, background=False)
        run = trainer([monitor, Stop()], 1000, min_steps=1)
        run.fit(JointSelection(dim=32), datamodule=RandomData(n=12, batch_size=3))
        assert monitor.counts[-1] == 12
        # Of an evaluation of everything at the same step there is no second one.
        assert [row["step"] for row in monitor.history][-3:] == steps
        assert monitor.history[-1]["monitor/final_seconds"] > 0
        assert monitor.seconds == monitor.last["monitor/seconds"]


def test_samples_are_drawn_once_by_the_seed_of_the_data() -> None:
    rows = draw_rows(100, 10, 3)
    assert rows is not None
    assert torch.equal(rows, draw_rows(100, 10, 3))  # type: ignore[arg-type]
    assert not torch.equal(rows, draw_rows(100, 10, 4))  # type: ignore[arg-type]
    assert len(rows.unique()) == 10
    monitor = MarginMonitor(samples=5)
    trainer([monitor], 2).fit(JointSelection(dim=32), datamodule=RandomData(n=12, seed=7))
    assert torch.equal(monitor._probes.rows, draw_rows(12, 5, 7))  # type: ignore[arg-type]


class Big(SequenceData):
    """More numbers than theory's problems have."""

    def load(self) -> dict[str, Sequences]:
        g = torch.Generator().manual_seed(0)
        keys = torch.randn(600, 8, 32, generator=g)
        labels = torch.where(keys[:, 0, 0] > 0, 1.0, -1.0)
        return {"train": Sequences(keys, labels)}


def test_budget_and_samples_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning_maxmargin"):
        monitor = MarginMonitor(samples=50)
        trainer([monitor], 3).fit(JointSelection(dim=32), datamodule=Big(seed=2))
    said = {r.getMessage() for r in caplog.records if ": budget" in r.getMessage()}
    assert said == {
        "MarginMonitor: budget 0.05 of the run's time (for keys of 153,600 numbers), measured in the background, "
        "50 of 600 sequences, drawn with seed 2; all at the end if the budget covers it"
    }


def test_large_data_are_watched_within_the_budget_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # A run of a second or two: what is guessed before the first evaluation would be all of its budget.
    monkeypatch.setattr(budgets, "SECONDS_AT_LEAST", 0.0)

    class Noting(MarginMonitor):
        def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> Any:
            begun.append((self._clock.spent, self._clock.elapsed))
            return super().snapshot_of(pl_module, samples)

    begun: list[tuple[float, float]] = []
    monitor = Noting(samples=50)
    trainer([monitor], 300).fit(JointSelection(dim=32, inner_steps=1), datamodule=Big())
    assert monitor.in_background
    assert begun
    assert all(spent <= 0.05 * elapsed for spent, elapsed in begun)
    assert begun[0][1] > 0, "none before training has taken any time"
    assert len(monitor.history) == len(begun)
    assert monitor.history[-1]["step"] == 300


def test_summary_and_columns_have_every_key_of_the_clock(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/tight"), "--trainer.max_steps", "50")
    assert outcome.status == 0, outcome.err
    for key in CLOCKS:
        assert isinstance(outcome.summary[key], float), key
    assert outcome.summary["monitor/lag_steps"] == 0
    header = (outcome.run_dir / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(CLOCKS) <= set(header)


def test_results_are_logged_at_the_step_they_belong_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    from lightning_maxmargin.figures.read import read_metrics

    affords(monkeypatch)
    monitor = Slow()
    run = trainer([monitor, LetGo(monitor, 30)], 40, logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=1)
    run.fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight"))
    metrics = read_metrics(next(tmp_path.rglob("metrics.csv")))
    steps, norms = metrics.series("norm/attention")
    assert steps.tolist() == [row["step"] for row in monitor.history]
    assert norms.tolist() == pytest.approx([row["norm/attention"] for row in monitor.history])


# --- several processes -----------------------------------------------------------------------------------------------


class Keep(pl.Callback):
    """Writes what each process has been told."""

    def __init__(self, monitor: MarginMonitor, folder: Path) -> None:
        self.monitor, self.folder = monitor, folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {"history": self.monitor.history, "logged": sorted(trainer.callback_metrics)}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


class Sleepy(MarginMonitor):
    def measure(self, step: int, snapshot: Any, readings: Any) -> Measured:
        time.sleep(0.05)
        return super().measure(step, snapshot, readings)


def test_all_processes_get_results_of_the_background_at_the_same_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    affords(monkeypatch)
    monitor = Sleepy(budget=0.5)
    two = {"devices": 2, "strategy": "ddp_fork"}
    run = trainer([monitor, Keep(monitor, tmp_path)], 150, **two)
    run.fit(JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight"))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first["history"]) >= 2
    assert any(row["monitor/lag_steps"] > 0 for row in first["history"][:-1])
    assert first["history"][-1]["step"] == 150


def test_an_error_of_the_background_reaches_both_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    affords(monkeypatch)
    monkeypatch.setattr(Probe, "measure", lambda *a: 1 / 0)
    with pytest.raises(Exception, match="MarginMonitor at step 1: ZeroDivisionError"):
        trainer([MarginMonitor(budget=0.5)], 100_000, devices=2, strategy="ddp_fork").fit(
            JointSelection(dim=2, inner_steps=1), datamodule=PaperData("joint_tight")
        )
