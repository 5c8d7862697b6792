"""What an offline run of W&B has on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_of(folder: Path) -> Path:
    """The directory of the one offline run that lies in this folder."""
    return next((folder / "wandb").glob("offline-run-*"))


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of that run, by W&B's own reader."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(run_of(folder))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in printed.splitlines()]


def said(folder: Path, kind: str) -> list[Any]:
    """What the run's records of this type say."""
    return [r[kind] for r in records(folder) if r["type"] == kind]


def summary(folder: Path) -> dict[str, Any]:
    """The summary that the run ended with."""
    found: dict[str, Any] = {}
    for update in said(folder, "summary"):
        found |= update["update"]
    return found
