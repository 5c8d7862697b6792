"""Ends all processes of a run when one of them fails, is killed or hangs, and names it."""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import _set_pg_timeout

from lightning_maxmargin.ranks import Failure, RollCall, default_store

#: Bytes in which a forked process leaves its failure for the one that forked it.
NOTE_SIZE = 1 << 16


class RankWatch(Callback):
    """Names the process that ends a run of several: the one that raised, was killed, or does not answer.

    Lightning leaves the others in a collective until it times out, with Gloo's traceback; here all end, within the
    strategy's ``timeout`` and 10 s of a hang, within seconds of anything else. ``maxmargin`` has one in every run and
    prints one line. In a script of your own the error of each other process says who is to blame.

    Args:
        timeout: seconds that the processes wait for one another, once all are there; the strategy's where None.

    Attributes:
        failure: what ended the run; None while all is well.

    Example:
        >>> RankWatch().failure is None
        True
    """

    #: Trainers of a process number their runs alike on all processes: each has its own words in the store.
    _runs = 0

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._calls: RollCall | None = None
        self._note: mmap.mmap | None = mmap.mmap(-1, NOTE_SIZE)
        self._made_in = os.getpid()
        self._blamed: BaseException | None = None

    @property
    def failure(self) -> Failure | None:
        """Who failed and how, once that is known; None before, and where nobody has."""
        text = b"" if self._note is None else self._note[:].rstrip(b"\0")
        if text:
            return Failure(**json.loads(text))
        return None if self._calls is None else self._calls.failure

    @property
    def prints(self) -> bool:
        """Whether this process says what failed: the one that found out, or the one that forked the others."""
        failure = self.failure
        return failure is not None and (self._calls is None or failure.teller == self._calls.rank)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        if self._calls is not None:
            self._calls.leave()
        RankWatch._runs += 1
        if self.timeout is None:
            self.timeout = (getattr(trainer.strategy, "_timeout", None) or default_pg_timeout).total_seconds()
        _set_pg_timeout(timedelta(seconds=self.timeout))
        self._calls = RollCall(
            dist.PrefixStore(f"ranks/{RankWatch._runs}", default_store()),
            trainer.global_rank,
            trainer.world_size,
            self.timeout,
            self._keep,
            quiet=os.getpid() != self._made_in,
        )
        _disarm_observer()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.blame(exception)

    def blame(self, exception: BaseException) -> None:
        """Finds out who is to blame for an error of this process, and says so in it where it is another.

        Args:
            exception: of this process; a line is added to it.
        """
        if self._calls is None or self._blamed is exception:
            return
        if not isinstance(exception, Exception):
            # An interrupt or a request to end: somebody's wish, and no failure.
            self._calls.leave()
            self._calls = None
            return
        self._blamed = exception
        failure = self._calls.blame(exception)
        if failure.rank != self._calls.rank:
            exception.args = (f"{failure}; here: {type(exception).__name__}",)

    def guard(self, trainer: pl.Trainer) -> None:
        """Lets a forked or spawned process say what failed as well: there Lightning calls no ``on_exception``.

        Args:
            trainer: whose strategy starts the processes.
        """
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            trainer._run = partial(_run_guarded, self, trainer._run)  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._calls is not None:
            self._calls.leave()
            self._calls = None

    def end_others(self) -> None:
        """After a failure: the first process of a machine waits for the others' ends, and ends those that stay."""
        if self._calls is not None and self._calls.failure is not None:
            self._calls.end_others()

    def _keep(self, failure: Failure) -> None:
        """Leaves the failure where the process that forked this one finds it."""
        if self._note is not None and not self._note[0]:  # of another process: what it says is the same
            short = {**asdict(failure), "trace": failure.trace[-NOTE_SIZE // 8 :], "cause": failure.cause[:2000]}
            text = json.dumps(short).encode()
            self._note[:] = text.ljust(NOTE_SIZE, b"\0")

    def __getstate__(self) -> dict[str, Any]:
        # Spawned processes get a copy by pickle, which memory cannot be.
        return {**self.__dict__, "_calls": None, "_note": None}


def _run_guarded(watch: RankWatch, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return run(*args, **kwargs)
    except Exception as error:
        watch.blame(error)
        raise


def _disarm_observer() -> None:
    """Lightning's own thread kills the first process, within five seconds of a child's end, before it says a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
