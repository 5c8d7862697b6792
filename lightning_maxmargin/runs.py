"""The run directory: where it is, that it is never overwritten, and what ``summary.json`` says."""

from __future__ import annotations

import json
import math
import os
import platform
import uuid
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.names import MEASURED, SUMMARY

#: Tells the processes that a launcher starts from the same command line where the first one writes.
RUN_DIR_VARIABLE = "MAXMARGIN_RUN_DIR"
PACKAGES = ("lightning-maxmargin", "torch", "pytorch-lightning", "torchmetrics", "wandb", "daqp", "numpy", "scipy")


def claim_run_dir(wanted: str | None, name: str) -> Path:
    """Makes the run directory and returns it; ``runs/NAME-DATE-ID`` where none is wanted.

    Raises:
        InputError: it exists and holds something, or cannot be made.
    """
    launched = os.environ.get(RUN_DIR_VARIABLE)
    if launched is not None and "LOCAL_RANK" in os.environ:
        return Path(launched)
    if "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return _of_many(wanted)
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    path = Path(wanted) if wanted else Path("runs") / stamp
    _make(path)
    os.environ[RUN_DIR_VARIABLE] = str(path.absolute())
    return path.absolute()


def _of_many(wanted: str | None) -> Path:
    """Under torchrun or SLURM every process gets here by itself: the name must be given, and the first one makes it."""
    if wanted is None:
        raise InputError("run_dir: several processes were launched from outside; name one directory with --run_dir")
    path = Path(wanted).absolute()
    if getattr(rank_zero_only, "rank", 0) == 0:
        _make(path)
    return path


def _make(path: Path) -> None:
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"run_dir: {path} exists and is not empty; a run is never overwritten, name another directory"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run_dir: {path} cannot be made ({error.strerror}); name a directory that can") from error


def write_summary(run_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Writes ``summary.json``: every key of :mod:`lightning_maxmargin.names`, null where undefined, and returns it."""
    summary = {key: _plain(values.get(key)) for key in (*SUMMARY, *MEASURED)}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def versions() -> str:
    """Python and package versions on one line."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def write_text(path: Path, text: str) -> None:
    """All of the text or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _plain(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
