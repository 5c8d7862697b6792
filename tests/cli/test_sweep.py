"""A W&B sweep of method grid, run here."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "sweep.py")


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=folder, timeout=300)


def small(folder: Path, **changed: object) -> str:
    """The shipped sweep with two runs of a few steps, in a file."""
    found = yaml.safe_load((ROOT / "configs" / "sweep" / "rates.yaml").read_text())
    found["command"] = [w for w in found["command"] if "max_steps" not in w] + ["--trainer.max_steps=5"]
    found["parameters"] = {"model.head_lr": {"values": [0.1, 0.4]}, "model.gradient": {"value": "exact"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(found | changed))
    return "sweep.yaml"


def test_every_combination_is_run_once(tmp_path: Path) -> None:
    done = sweep(tmp_path, small(tmp_path), "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 0, done.stderr
    rates = []
    for run in sorted((tmp_path / "runs").iterdir()):
        rates.append(yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["head_lr"])
        assert json.loads((run / "summary.json").read_text())["steps"] == 5
    assert rates == [0.1, 0.4]
    written = [(tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in ("000", "001")]
    assert sweep(tmp_path, "sweep.yaml", "--runs", "runs", "--wandb", "disabled").returncode == 0
    assert written == [(tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in ("000", "001")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "bayes"}, "no sweep of method grid"),
        ({"parameters": {"model.head_lr": {"min": 0.1, "max": 1.0}}}, "model.head_lr"),
    ],
)
def test_what_is_no_grid_is_refused(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    done = sweep(tmp_path, small(tmp_path, **changed))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


def test_runs_of_a_sweep_that_was_edited_are_not_taken_for_its_own(tmp_path: Path) -> None:
    words = ("--runs", "runs", "--wandb", "disabled")
    assert sweep(tmp_path, small(tmp_path), *words).returncode == 0
    done = sweep(tmp_path, small(tmp_path, parameters={"model.head_lr": {"values": [0.2, 0.4]}}), *words)
    assert done.returncode == 2
    assert "is of another sweep, or of this one before it was edited" in done.stderr


def test_a_run_that_fails_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    file = small(tmp_path, parameters={"model.head_lr": {"values": ["none", 0.1]}})
    done = sweep(tmp_path, file, "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 1
    assert "000: maxmargin: error:" in done.stderr
    assert (tmp_path / "runs" / "001" / "summary.json").is_file()
    assert not (tmp_path / "runs" / "000").exists()


def test_the_shipped_sweep_has_a_run_for_every_combination() -> None:
    found = yaml.safe_load((ROOT / "configs" / "sweep" / "rates.yaml").read_text())
    values = [parameter["values"] for parameter in found["parameters"].values()]
    assert len(list(itertools.product(*values))) == 18
    assert {"${env}", "${args}"} <= set(found["command"])
