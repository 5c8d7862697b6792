"""What an offline run of W&B has on disk."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


def run_of(folder: Path) -> Path:
    """The directory of the one offline run that lies in this folder."""
    return next((folder / "wandb").glob("offline-run-*"))


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of that run, by W&B's own reader: what ``wandb leet inspect`` starts after .7 s of imports."""
    [file] = run_of(folder).glob("run-*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
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
