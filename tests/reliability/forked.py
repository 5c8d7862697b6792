"""A ``maxmargin`` command in a forked process, which has imported everything: it begins in tenths of a second."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from lightning_maxmargin.cli import main
from lightning_maxmargin.run.last_checkpoint import SAVE_EVERY, LastCheckpoint
from lightning_maxmargin.run.variables import OWNER_VARIABLE, RUN_DIR_VARIABLE
from tests.conftest import ROOT

#: Seconds between two checkpoints in place of 30, so that a kill a second loses as much as one a minute.
EVERY = 0.2
_PIPES: dict[Path, tuple[int, int]] = {}


def begin(words: Sequence[str], folder: Path, meanwhile: Callable[[], None] | None = None, every: float = EVERY) -> int:
    """The process of a command in this folder, leader of a group of its own.

    Args:
        words: of the command.
        folder: where it is.
        meanwhile: called in it first.
        every: seconds between two checkpoints.
    """
    errors = _pipe(folder)
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        LastCheckpoint.__init__.__defaults__ = (every,)  # type: ignore[misc]
        asyncio._set_running_loop(None)  # of who begins it
        told = open(errors, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (the process ends with it)
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            if meanwhile is not None:
                meanwhile()
            try:
                status = main(list(words))
            except BaseException:
                traceback.print_exc()
            told.flush()
    finally:
        sys.stdout.flush()
        os._exit(status)


def started(words: tuple[str, ...], folder: Path) -> int:
    """The command as a user types it, in a group of its own; forked here, for Popen would wait for it as well."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("WANDB_", "MAXMARGIN_"))}
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        os.chdir(folder)
        with open("errors.txt", "wb") as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        command = [sys.executable, "-m", "lightning_maxmargin", *words]
        os.execve(sys.executable, command, {**environment, "PYTHONPATH": str(ROOT)})
    finally:
        os._exit(127)


def wait(process: int, seconds: float = 300.0) -> int:
    """Its exit status; killed where it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    kill(process)
    raise TimeoutError(f"a run took longer than {seconds:g} s")


def kill(process: int) -> None:
    """Ends it and every process that it has started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, 0)


def run(words: Sequence[str], folder: Path) -> int:
    """The status of the command."""
    return wait(begin(words, folder))


def run_together(
    words: Sequence[str], folder: Path, world: int, meanwhile: Callable[[], None] | None = None
) -> list[int]:
    """The statuses of the command in so many processes of one run: they find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}

    def as_rank(rank: int) -> None:
        for name in (RUN_DIR_VARIABLE, OWNER_VARIABLE):  # of a run of this process
            os.environ.pop(name, None)
        os.environ.update(meet, LOCAL_RANK=str(rank))
        rank_zero_only.rank = rank  # as it is when Lightning is imported
        if meanwhile is not None:
            meanwhile()

    processes = [begin(words, folder, partial(as_rank, rank), SAVE_EVERY) for rank in range(world)]
    return [wait(process) for process in processes]


def _pipe(folder: Path) -> int:
    """Where a command in this folder says its errors: no file, for a disk may be full."""
    if folder not in _PIPES:
        _PIPES[folder] = os.pipe()
    return _PIPES[folder][1]


def told(folder: Path) -> str:
    """The end of what commands in this folder have said to standard error since it was read."""
    os.set_blocking(_pipe(folder) and _PIPES[folder][0], False)
    try:
        return os.read(_PIPES[folder][0], 2**16).decode("utf-8", "replace")[-2000:]
    except BlockingIOError:
        return ""


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """A temporary one."""
    folder = Path(tempfile.mkdtemp(prefix="reliability-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for end in _PIPES.pop(folder, ()):
            os.close(end)
