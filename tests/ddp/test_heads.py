"""Foreign modules on two processes: the numbers of one process, and its errors on both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_maxmargin import AttentionSource, HeadMonitor
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.callbacks.test_margin_monitor import trainer
from tests.conftest import ROOT


class Keep(Callback):
    """Writes what each process saw: with ddp_fork the objects never leave it."""

    def __init__(self, monitor: HeadMonitor, folder: Path) -> None:
        self.monitor, self.folder = monitor, folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self.folder / f"{trainer.world_size}-{trainer.global_rank}.json"
        path.write_text(json.dumps({"history": self.monitor.history, "logged": sorted(trainer.callback_metrics)}))


class Telling(HeadMonitor):
    """Writes the error each process gets: Lightning calls on_exception in the parent alone."""

    folder: Path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super().on_train_start(trainer, pl_module)
        except Exception as error:
            (self.folder / f"error-{trainer.global_rank}.txt").write_text(f"{type(error).__name__}: {error}")
            # The first process to end has the other one killed: wait until it has written as well.
            end = time.monotonic() + 20
            while time.monotonic() < end and len(list(self.folder.glob("error-*.txt"))) < trainer.world_size:
                time.sleep(0.05)
            raise


def train(devices: int, folder: Path, monitor: HeadMonitor) -> None:
    # No learning: two processes see other batches, and only the looks are compared.
    torch.manual_seed(0)
    module = Foreign()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # type: ignore[method-assign]
    two = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
    trainer([monitor, Keep(monitor, folder)], 3, **two).fit(module, DataLoader(some_data(24), 4))


@pytest.mark.parametrize("size", [3, 4, 24], ids=["4 batches, one short", "3 batches", "one batch for two processes"])
def test_two_processes_see_what_one_sees(tmp_path: Path, size: int) -> None:
    for devices in (1, 2):
        loader = DataLoader(some_data(10), size)
        train(devices, tmp_path, HeadMonitor(sources=SEPARATE, data=loader))
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["history"] == second["history"]
    assert one["logged"] == first["logged"] == second["logged"]
    assert [row["step"] for row in first["history"]] == [0, 1, 2, 3]
    assert first["history"][0].keys() == one["history"][0].keys()
    for key, value in one["history"][0].items():
        if key not in ("monitor/seconds", "monitor/final_seconds"):
            assert first["history"][0][key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9))


def test_two_processes_find_what_one_finds_on_the_same_samples(tmp_path: Path) -> None:
    """Also where Lightning has split the training data between them."""
    for devices in (1, 2):
        train(devices, tmp_path, HeadMonitor("auto", samples=10, query_token="all"))
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["history"] == second["history"]
    assert one["logged"] == first["logged"]
    for key, value in one["history"][0].items():
        if key not in ("monitor/seconds", "monitor/final_seconds"):
            assert first["history"][0][key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), (
                key
            )


def fail_on_the_second(module: Any, batch: Any) -> None:
    if module.trainer.global_rank == 1:
        raise ValueError("only here")
    module(batch[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sources": SEPARATE, "forward": fail_on_the_second},
            "RuntimeError: Telling at step 0: ValueError: only",
        ),
        ({"sources": AttentionSource(keys="out", queries="q", heads=2)}, "'out' was given"),
        ({"sources": AttentionSource(keys="kk", queries="q", heads=2)}, "the closest is 'k'"),
    ],
    ids=["in one process", "while reading", "at the start"],
)
def test_an_error_reaches_both_processes(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    monitor = Telling(data=some_data(10).tensors, **settings)
    monitor.folder = tmp_path
    with pytest.raises(Exception, match=r"at step 0|no submodule"):
        train(2, tmp_path, monitor)
    seen = [(tmp_path / f"error-{rank}.txt").read_text() for rank in range(2)]
    assert seen[0] == seen[1]
    assert message in seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("auto", [False, True])
def test_sharded_weights_are_gathered(tmp_path: Path, auto: bool) -> None:
    """FSDP2 on two processes: the first look sees the same weights as one process that owns them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ddp.sharded", str(tmp_path), *["auto"] * auto],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 20
    while not (tmp_path / "rank-1.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    torch.manual_seed(0)
    monitor = HeadMonitor(sources="auto" if auto else SEPARATE, data=DataLoader(some_data(10), 4))
    trainer([monitor], 1).fit(Foreign(), DataLoader(some_data(), 4))
    for key, value in monitor.history[0].items():
        if key not in ("monitor/seconds", "monitor/final_seconds"):
            assert first[0][key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
