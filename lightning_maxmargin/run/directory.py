"""The run directory: where it is, and that it is never overwritten."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import uuid
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from lightning_maxmargin.atomic import remove_empty
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.variables import OWNER_VARIABLE, RUN_DIR_VARIABLE

#: Names of SLURM jobs that are shells, from which Lightning takes nothing.
SHELLS = ("bash", "interactive")
PACKAGES = ("lightning-maxmargin", "torch", "pytorch-lightning", "torchmetrics", "wandb", "daqp", "numpy", "scipy")
#: Bytes of the longest name of a file, and of what a run's directory has after the run's own name.
LONGEST, STAMP = 255, len("-20260101-000000-abcdef")
#: And of a whole path, with room for the files in it.
LONGEST_PATH = 3_500
#: Seconds that a process under torchrun waits for the first one's choice.
CHOICE_TIMEOUT = 300.0

_choices = count()


def plan_run_dir(wanted: str | None, name: str, goes_on: bool = False) -> Path:
    """Where the run goes, ``runs/NAME-DATE-ID`` where none is wanted; nothing is made yet.

    All processes of a launcher get the same: under torchrun the first one's choice, by the launcher's store; under
    SLURM ``runs/NAME-slurm-JOB-ID``, where a requeued job finds what it has left.

    Args:
        wanted: by the user.
        name: of the run.
        goes_on: whether the run in it goes on.

    Raises:
        InputError: it exists and holds something, and is not that of the same job before it was requeued; the name is
            none of a directory.
    """
    launched = os.environ.get(RUN_DIR_VARIABLE)
    if launched is not None and _is_child():
        return Path(launched)
    _check_name("run_dir" if wanted is not None else "name", name if wanted is None else wanted)
    path = Path(wanted) if wanted else _chosen(name)
    path = path.absolute()
    # Under torchrun or SLURM every process gets here by itself, and the first may already have made the directory.
    goes_on = goes_on or is_requeued()
    if getattr(rank_zero_only, "rank", 0) == 0 and not goes_on and _holds_something(path):
        raise InputError(f"run_dir: {path} exists and is not empty; a run is never overwritten, name another directory")
    return path


def _check_name(key: str, given: str) -> None:
    """Refuses what no directory is called, and a name that would lead out of ``runs``."""
    if not given.isprintable():
        raise InputError(f"{key}: {given!r} has characters that cannot be printed; leave them out")
    if key == "run_dir" and not given:
        raise InputError("run_dir: the name is empty; name a new directory, or leave run_dir out")
    if key == "name" and set("/\\") & set(given):
        raise InputError(
            f"name: {given!r} would be another directory than one in runs; use no / or \\, or give --run_dir"
        )
    length = max(len(part.encode()) for part in given.split("/")) + (STAMP if key == "name" else 0)
    if length > LONGEST:
        raise InputError(f"{key}: {given[:40]!r}... is too long for a directory by {length - LONGEST} bytes")
    if len(given.encode()) > LONGEST_PATH:
        raise InputError(f"{key}: {given[:40]!r}... is too long for a path, by its {len(given.encode())} bytes")


def is_requeued() -> bool:
    """Whether SLURM runs this job again, after a time limit or for a job of more weight."""
    return _is_slurm_job() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def last_checkpoint(run_dir: Path) -> Path | None:
    """Where a requeued job goes on; None where it begins."""
    path = run_dir / "checkpoints" / "last.ckpt"
    return path if is_requeued() and path.is_file() else None


def _holds_something(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _chosen(name: str) -> Path:
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    if _is_slurm_job():
        path = Path("runs") / f"{name}-slurm-{_slurm_id()}"
        # One job of one task may run the same command again and again.
        return Path("runs") / stamp if _is_alone() and not is_requeued() and _holds_something(path) else path
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Path("runs") / _of_the_first(stamp)
    if _is_child():
        raise InputError("run_dir: several processes were launched from outside; name one directory with --run_dir")
    return Path("runs") / stamp


def _is_child() -> bool:
    """Whether another process of ours started this one: the variables of a run outlast it in its own process."""
    external = "TORCHELASTIC_RUN_ID" in os.environ or _is_slurm_job()
    return not external and "LOCAL_RANK" in os.environ and os.environ.get(OWNER_VARIABLE) != str(os.getpid())


def _is_slurm_job() -> bool:
    """As Lightning tells: a job with tasks, other than a shell in an allocation."""
    return {"SLURM_NTASKS", "SLURM_JOB_ID"} <= os.environ.keys() and os.environ.get("SLURM_JOB_NAME") not in SHELLS


def _is_alone() -> bool:
    return os.environ["SLURM_NTASKS"] == "1"


def _slurm_id() -> str:
    """The job, of an array its task as well, and the command: the same on all tasks and when the job runs again."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return f"{job}-{hashlib.sha256(' '.join(sys.argv[1:]).encode()).hexdigest()[:6]}"


def _of_the_first(stamp: str) -> str:
    """What the first process under torchrun has chosen, by the store of the launcher's own process."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=CHOICE_TIMEOUT))
    # All processes choose equally often, and once more when the launcher starts them again.
    key = f"maxmargin/run_dir/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_choices)}"
    if os.environ["RANK"] == "0":
        store.set(key, stamp)
    return store.get(key).decode()


def make_run_dir(path: Path) -> list[Path]:
    """Makes the planned directory, and tells the processes that a launcher starts from the same command line.

    Returns:
        the directories that were not there before, outermost last.

    Raises:
        InputError: it cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(made)
        raise InputError(f"run_dir: {path} cannot be made ({error.strerror}); name a directory that can") from error
    os.environ[RUN_DIR_VARIABLE] = str(path)
    # Not in the processes that the first one starts: to them it stays the owner.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[OWNER_VARIABLE] = str(os.getpid())
    return made


def versions() -> str:
    """Python and package versions on one line."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
