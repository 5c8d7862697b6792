"""One registry of keys: what is logged, what the summary holds and what docs say all come from it."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from lightning_maxmargin import JointSelection, MarginMonitor, keys, register_key, solve_att_svm
from lightning_maxmargin.core import losses, updates
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import RunFiles
from lightning_maxmargin.figures.diagnosis import number_table
from lightning_maxmargin.run.summary import write_summary
from lightning_maxmargin.svm.norms import registry
from tests.conftest import ROOT, config


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(keys, "_KEYS", dict(keys._KEYS))


@pytest.mark.parametrize(
    ("file", "sources"),
    [
        ("docs/numbers.md", ("selector", "ensemble", "module", "run")),
        ("docs/python.md", ("head", "heads")),
        ("docs/text.md", ("text",)),
    ],
)
def test_the_tables_of_the_docs_are_made_from_the_registry(file: str, sources: tuple[Any, ...]) -> None:
    assert keys.markdown(*sources) in (ROOT / file).read_text(), f"{file}: python -m lightning_maxmargin.keys"


def test_every_key_is_registered_once_and_says_what_it_is() -> None:
    names = [key.name for key in keys._TABLE]
    assert len(names) == len(set(names)) > 50
    assert all(len(key.meaning) > 5 and "|" not in key.meaning and key.sources for key in keys._TABLE)
    assert {key.axis for key in keys._TABLE} <= {keys.STEP, *names}


def fit(monitor: MarginMonitor, **options: Any) -> MarginMonitor:
    model = JointSelection(dim=2, parametrization="p", attention_lr=0.1, head_lr=0.1)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=50, max_epochs=-1, callbacks=[monitor], accelerator="cpu", **quiet, **options)  # type: ignore[arg-type]
    trainer.fit(model, datamodule=PaperData("joint_tight"))
    return monitor


def second(model: Any, data: Any, output: Any, selected: Any) -> torch.Tensor:
    return output.attention.topk(2, 1).values[:, 1].mean()


def test_a_number_of_ones_own_is_one_entry(tmp_path: Path, own_registry: None) -> None:
    register_key("attention/second", "attention on the second heaviest token", format="near one")
    monitor = fit(MarginMonitor(metrics={"attention/second": second}), logger=CSVLogger(tmp_path, "", ""))
    value = monitor.last["attention/second"]
    assert isinstance(value, float)
    assert 0 < value < 1 / 2
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert "attention/second" in header
    summary = write_summary(tmp_path, {**monitor.last, "name": "x"})
    assert summary["attention/second"] == value
    assert json.loads((tmp_path / "summary.json").read_text())["attention/second"] == value
    (tmp_path / "config.yaml").write_text("trainer: {}\n")
    (row,) = [row for row in number_table(RunFiles.load(tmp_path)) if row.name == "attention/second"]
    assert row.meaning == "attention on the second heaviest token"


def test_a_limit_of_ones_own_has_a_gap_and_a_relative_margin(own_registry: None) -> None:
    class WithMargin:
        """The strict SVM once more, with what a direction achieves against it."""

        def __init__(self, data: Any, selected: Any) -> None:
            solution = solve_att_svm(data.keys, selected, queries=data.queries, mask=data.mask)
            self.status, self.direction, self.margin = solution.status, solution.direction, solution.margin
            n = torch.arange(len(selected))
            self.rows = (data.keys[n, selected][:, None] - data.keys).flatten(0, 1)
            self.rows = self.rows[self.rows.any(1)]

        def achieved(self, direction: torch.Tensor) -> float:
            return float((self.rows @ direction).min())

    def bare(data: Any, selected: Any) -> Any:
        return solve_att_svm(data.keys, selected, queries=data.queries, mask=data.mask)

    monitor = fit(MarginMonitor(limits={"mine": WithMargin, "bare": bare}), logger=False)
    last, snapshot = monitor.last, monitor.snapshot
    assert snapshot is not None
    assert last["direction_gap/mine"] == last["direction_gap/bare"] == last["direction_gap/strict"]
    achieved = float(last["margin/attention"]) / snapshot.solutions["strict"].attention.margin  # type: ignore[arg-type]
    assert last["relative_margin/mine"] == pytest.approx(achieved, rel=1e-12)
    assert last["relative_margin/bare"] is None


def test_a_key_that_is_measured_but_not_registered_is_an_error_here_and_logged_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match=r"measured but not registered: attention/second; add them to keys.py"):
        fit(MarginMonitor(metrics={"attention/second": second}), logger=False)
    monkeypatch.delenv(keys.STRICT_VARIABLE)
    logger = CSVLogger(tmp_path, "", "")
    monitor = fit(MarginMonitor(metrics={"attention/second": second}), logger=logger)
    assert "attention/second" in next(tmp_path.rglob("metrics.csv")).read_text()
    assert write_summary(tmp_path, dict(monitor.last))["attention/second"] == monitor.last["attention/second"]


def test_a_name_has_one_meaning(own_registry: None) -> None:
    assert register_key("mine", "a number") == register_key("mine", "a number")
    for name in ("mine", "norm/head", ""):
        with pytest.raises(InputError, match=f"register_key: {name!r} is registered with another meaning"):
            register_key(name, "something else")


def test_a_run_measures_nothing_that_is_not_registered(maxmargin: Any) -> None:
    words = ("--data.train", "60", "--data.test", "30", "--data.T", "4", "--trainer.max_steps", "5")
    summary = maxmargin("fit", "--config", config("text/planted"), *words).summary
    assert set(summary) == set(keys.measured_by("selector", "ensemble", "run"))


@pytest.mark.parametrize(
    ("module", "table"), [(keys, "_KEYS"), (losses, "LOSSES"), (updates, "UPDATES"), (registry, "NORMS")]
)
def test_examples_leave_the_tables_as_they_were(module: Any, table: str) -> None:
    """The runs of later tests in this process would log, or take, what one has registered."""
    before = dict(getattr(module, table))
    assert doctest.testmod(module).failed == 0
    assert getattr(module, table) == before
