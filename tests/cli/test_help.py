"""What the commands say of themselves, and to a reader that goes away."""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from lightning_maxmargin import __version__
from lightning_maxmargin.cli import TRAINER_COMMANDS
from lightning_maxmargin.run.imports import collected_later
from lightning_maxmargin.run.streams import readers_may_go


def options(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-\w, )*(?:-\w \S+, )?--([\w.]+)", text, re.MULTILINE))


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_what_the_short_help_names_are_options(command: str, maxmargin: Any) -> None:
    short, full = (maxmargin(command, word, plain=False) for word in ("--help", "--help.full"))
    assert (short.status, full.status) == (0, 0)
    named = {name for name in options(short.out) if not name.endswith(".KEY")}
    assert named >= {"config", "ckpt_path", "trainer.devices", "run_dir", "wandb_project", "model.help"}
    assert ("monitor.budget" in named) == (command == "fit")
    assert named <= options(full.out), named - options(full.out)
    assert f"maxmargin {command} --help.full" in short.out
    assert len(short.out.splitlines()) < 130
    # What it says of defaults is what they are.
    for name in named:
        said = default_of(short.out, name)
        assert said in (None, default_of(full.out, name)), name


def default_of(text: str, name: str) -> str | None:
    about = re.search(rf"^  --{re.escape(name)}(?![.+\w]).*?(?=^  \S|^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if about is None:  # -c CONFIG, --config CONFIG
        return None
    found = re.search(r"default:\s+([^)]*)\)", about.group())
    return " ".join(found.group(1).split()) if found else None


def test_version(maxmargin: Any) -> None:
    outcome = maxmargin("--version", plain=False)
    assert (outcome.status, outcome.out) == (0, f"maxmargin {__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["path", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    """As ``| head`` does."""
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "lightning_maxmargin", *words]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(call, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_goes_on_when_its_reader_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's table is printed before its report is written; rich would end the process by itself."""
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with readers_may_go():
            print("heard", flush=True)
            assert os.read(read, 100) == b"heard\n"
            os.close(read)
            for _ in range(3):
                Console().print("nobody hears " * 10_000)
                print("this either", flush=True)
        assert sys.stdout is pipe


def test_streams_that_are_no_pipes_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with (tmp_path / "out.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        before = sys.stdout, sys.stderr
        with readers_may_go():
            assert (sys.stdout, sys.stderr) == before


def test_garbage_is_looked_for_again_after_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    with collected_later():
        assert gc.isenabled(), "torch is there"
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]
    with collected_later():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)
    gc.unfreeze()
