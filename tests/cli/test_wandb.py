"""W&B: offline by default, read back from disk, and never the end of a run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maxmargin.run.loggers import mode_of
from tests.conftest import Outcome, config, fit_once

WORDS = (
    "fit",
    "--config",
    config("joint/tight"),
    "--trainer.max_steps",
    "60",
    "--report",
    "false",
    "--trainer.enable_progress_bar",
    "false",
)


def records(run_dir: Path) -> list[dict[str, Any]]:
    command = [
        str(Path(sys.executable).parent / "wandb"),
        "leet",
        "inspect",
        "--json",
        str(next((run_dir / "wandb").glob("offline-run-*"))),
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in printed.splitlines()]


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["norm/attention"]]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run with W&B as it is by default."""
    return fit_once(tmp_path_factory.mktemp("offline"), *WORDS[1:], plain=False)


@pytest.mark.parametrize(
    ("said", "variable", "mode"),
    [
        (None, None, "offline"), (None, "disabled", "disabled"), (None, "online", "online"),
        (None, "dryrun", "offline"), (None, "DISABLED", "disabled"), (None, "shared", "offline"),
        ("offline", "disabled", "offline"), ("disabled", "online", "disabled"),
    ],
)  # fmt: skip
def test_the_command_line_then_the_environment(
    said: Any, variable: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert mode_of(said) == mode


def test_wandb_disabled_by_its_variable(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = maxmargin(*WORDS[:3], "--trainer.max_steps", "9", "--report", "false", plain=False)
    assert run.status == 0, run.err
    assert not (run.run_dir / "wandb").exists()
    assert (run.run_dir / "metrics.csv").is_file()


def test_offline_run_reads_back_what_the_csv_says(offline: Outcome) -> None:
    found = records(offline.run_dir)
    history = [r["history"] for r in found if r["type"] == "history"]
    written = json.dumps(history)
    assert "direction_gap/strict" in written
    last = rows(offline.run_dir)[-1]
    assert f"{float(last['direction_gap/head']):.6g}"[:6] in written
    assert (offline.run_dir / "wandb_id.txt").read_text() in json.dumps(found)


def test_axes_are_defined(offline: Outcome) -> None:
    metrics = {json.dumps(r["metric"]) for r in records(offline.run_dir) if r["type"] == "metric"}
    gaps = [m for m in metrics if "direction_gap" in m]
    assert gaps
    assert all("norm/attention" in m for m in gaps)


def test_disabled_leaves_no_wandb(maxmargin: Any) -> None:
    outcome = maxmargin(*WORDS, "--wandb", "disabled", plain=False)
    assert not (outcome.run_dir / "wandb").exists()
    assert rows(outcome.run_dir)


def same_training(a: Any, b: Any) -> None:
    """The same weights and a complete CSV, whatever became of W&B."""
    assert a.status == b.status == 0, b.err
    np.testing.assert_array_equal(
        np.load(a.run_dir / "paths.npz")["attention"], np.load(b.run_dir / "paths.npz")["attention"]
    )
    assert [r["step"] for r in rows(a.run_dir)] == [r["step"] for r in rows(b.run_dir)]


def test_unwritable_directory_costs_no_training(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    sound = maxmargin(*WORDS, "--wandb", "disabled", plain=False)
    monkeypatch.setattr(wandb, "init", full)
    with pytest.warns(UserWarning, match="going on without it"):
        broken = maxmargin(*WORDS, plain=False)
    same_training(sound, broken)


def test_failure_in_the_middle_costs_no_training(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    from lightning_maxmargin.run.wandb_logger import WandbLogger

    sound = maxmargin(*WORDS, "--wandb", "disabled", plain=False)
    calls: list[int] = []

    def breaks(self: Any, metrics: Any, step: Any = None) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise wandb.Error("server went away")

    monkeypatch.setattr(WandbLogger, "log_metrics", breaks)
    with pytest.warns(UserWarning, match="server went away"):
        broken = maxmargin(*WORDS, plain=False)
    assert len(calls) == 3, "one warning, then no further call"
    same_training(sound, broken)


@pytest.mark.slow
def test_unreachable_server_goes_on_offline(tmp_path: Path, maxmargin: Any) -> None:
    """In a process of its own: W&B reads its environment once per process."""
    sound = maxmargin(*WORDS, "--wandb", "disabled", plain=False)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MAXMARGIN_"))}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    words = [sys.executable, "-m", "lightning_maxmargin", *WORDS, "--wandb", "online", "--run_dir", "other"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert "going on offline" in done.stderr
    same_training(sound, Outcome(done.returncode, done.stdout, done.stderr, tmp_path / "other"))
    assert records(tmp_path / "other")
