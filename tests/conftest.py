"""What all tests share: one thread, no network for W&B, and the command line run in this process."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MAXMARGIN_STRICT", "1")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would every command that a test interrupts: for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
QUIET = ("--wandb", "disabled", "--report", "false", "--trainer.enable_progress_bar", "false")


@dataclass
class Outcome:
    """What a command left: exit status, what it printed, and its run directory."""

    status: int
    out: str
    err: str
    run_dir: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "summary.json").read_text())

    @property
    def error(self) -> str:
        """The one line of an error, without warnings of other libraries."""
        return next(line for line in reversed(self.err.splitlines()) if line.startswith("maxmargin: error: "))


@pytest.fixture(scope="session")
def imported() -> None:
    """What a command imports, once, where the garbage collector does not look at it again: .2 s each time."""
    import lightning_maxmargin.run.lightning_cli  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def maxmargin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], imported: None
) -> Any:
    """Runs the command in this process, in an empty directory, with W&B and the report off unless asked for."""
    from lightning_maxmargin.cli import main

    monkeypatch.chdir(tmp_path)
    for variable in ("MAXMARGIN_RUN_DIR", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)

    def call(*words: str, plain: bool = True) -> Outcome:
        run_dir = tmp_path / "run"
        while run_dir.exists() and any(run_dir.iterdir()):
            run_dir = run_dir.with_name(run_dir.name + "x")
        # Before the words of the test, which may say otherwise.
        extra = ["--run_dir", str(run_dir)] if words[:1] == ("fit",) else []
        if plain and words[:1] == ("fit",):
            extra += QUIET
        monkeypatch.setattr(sys, "argv", ["maxmargin"])
        capfd.readouterr()
        status = main([*words[:1], *extra, *words[1:]])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err, run_dir)

    return call


def fit_once(folder: Path, *words: str, plain: bool = True) -> Outcome:
    """A run in ``folder`` that the tests of a module share and none of them changes; nothing printed is kept."""
    from lightning_maxmargin.cli import main

    quiet = QUIET if plain else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in ("MAXMARGIN_RUN_DIR", "LOCAL_RANK"):
            patch.delenv(variable, raising=False)
        patch.setattr(sys, "argv", ["maxmargin"])
        assert main(["fit", "--run_dir", str(folder / "run"), *quiet, *words]) == 0
    return Outcome(0, "", "", folder / "run")


def config(name: str) -> str:
    """The path of a shipped config."""
    return str(ROOT / "configs" / f"{name}.yaml")
