"""A run of several processes: how long they wait for one another, and what is refused before they begin."""

from __future__ import annotations

import math
import os
import re
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import LightningEnvironment
from torch.distributed.constants import default_pg_timeout

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.ranks import is_echo

#: Seconds that processes wait for one another where nobody says otherwise: what NCCL waits.
TIMEOUT = 600.0
#: Seconds that they wait for one another to start, at least: importing takes 10 s, and minutes on a busy file system.
START_TIMEOUT = 300.0
#: What a process of several nodes must be told where no scheduler starts it.
NODE_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def limit_waiting(strategy: Any, seconds: float | None) -> float:
    """How long the processes of a strategy wait for one another: its own ``timeout`` where it has been given one.

    Raises:
        InputError: not a positive number, or another than the strategy's own.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"timeout: {seconds}; expected a positive number of seconds")
    wanted, given = TIMEOUT if seconds is None else seconds, getattr(strategy, "_timeout", None)
    if given is None:
        return wanted
    if given == default_pg_timeout:
        strategy._timeout = timedelta(seconds=max(wanted, START_TIMEOUT))
        return wanted
    if seconds is not None and given.total_seconds() != seconds:
        raise InputError(
            f"timeout: {seconds:g} s, but trainer.strategy's own is {given.total_seconds():g} s; give one of them"
        )
    return float(given.total_seconds())


def check_nodes(trainer: pl.Trainer) -> None:
    """Refuses several nodes that nothing starts: the first would wait for the others without a word.

    Raises:
        InputError: it is so.
    """
    connector: Any = trainer._accelerator_connector
    if trainer.num_nodes == 1 or not isinstance(connector.cluster_environment, LightningEnvironment):
        return
    lacks = [name for name in NODE_VARIABLES if name not in os.environ]
    if lacks:
        raise InputError(
            f"trainer.num_nodes: {trainer.num_nodes}, but nothing starts this command on the other nodes; use torchrun "
            f"(scripts/launch_torchrun.sh) or SLURM (scripts/slurm.sbatch), or set {', '.join(lacks)} on each node"
        )


def of_a_process(error: BaseException) -> BaseException:
    """The error that a forked or spawned process had, where it is one of input; one line where they did not meet."""
    if is_echo(error):
        return InputError(f"trainer: the processes did not meet: {str(error).splitlines()[0]}")
    if type(error).__name__ != "ProcessRaisedException":
        return error
    last = str(error).strip().splitlines()[-1]
    found = re.match(r"[\w.]*\bInputError: (.*)", last)
    return InputError(found[1]) if found else error
