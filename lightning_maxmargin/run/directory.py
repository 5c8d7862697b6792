"""The run directory: where it is, and that it is never overwritten."""

from __future__ import annotations

import os
import platform
import uuid
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from lightning_maxmargin.errors import InputError

#: Tells the processes that a launcher starts from the same command line where the first one writes.
RUN_DIR_VARIABLE = "MAXMARGIN_RUN_DIR"
LAUNCHED = ("LOCAL_RANK", "SLURM_PROCID")
PACKAGES = ("lightning-maxmargin", "torch", "pytorch-lightning", "torchmetrics", "wandb", "daqp", "numpy", "scipy")


def plan_run_dir(wanted: str | None, name: str) -> Path:
    """Where the run goes, ``runs/NAME-DATE-ID`` where none is wanted; nothing is made yet.

    Raises:
        InputError: it exists and holds something.
    """
    launched = os.environ.get(RUN_DIR_VARIABLE)
    if launched is not None and "LOCAL_RANK" in os.environ:
        return Path(launched)
    if wanted is None and any(v in os.environ for v in LAUNCHED):
        raise InputError("run_dir: several processes were launched from outside; name one directory with --run_dir")
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    path = (Path(wanted) if wanted else Path("runs") / stamp).absolute()
    # Under torchrun or SLURM every process gets here by itself, and the first may already have made the directory.
    if getattr(rank_zero_only, "rank", 0) == 0 and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"run_dir: {path} exists and is not empty; a run is never overwritten, name another directory")
    return path


def make_run_dir(path: Path) -> None:
    """Makes the planned directory, and tells the processes that a launcher starts from the same command line.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run_dir: {path} cannot be made ({error.strerror}); name a directory that can") from error
    os.environ[RUN_DIR_VARIABLE] = str(path)


def versions() -> str:
    """Python and package versions on one line."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
