"""A run of several processes: how long they wait for one another, and what is refused before they begin."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.distributed.constants import default_pg_timeout

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.sharding import refuse_sharding
from lightning_maxmargin.ranks import is_echo
from lightning_maxmargin.reduce import leave_group

#: Seconds that processes wait for one another where nobody says otherwise: what NCCL waits.
TIMEOUT = 600.0
#: Seconds of a year; a count of nanoseconds has room for more, but not for every number.
LONGEST_TIMEOUT = 365 * 86_400.0
#: Seconds that they wait for one another to start, at least: importing takes 10 s, and minutes on a busy file system.
START_TIMEOUT = 300.0
#: What a process of several nodes must be told where no scheduler starts it.
NODE_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
#: What Lightning's launchers leave in the environment of the process that starts the others.
LAUNCH_VARIABLES = (*NODE_VARIABLES, "LOCAL_RANK", "WORLD_SIZE")


@contextmanager
def launchable_again() -> Iterator[None]:
    """Inside the block a run may launch processes; after it the next of this process begins as the first one did."""
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    try:
        yield
        leave_group()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def limit_waiting(strategy: Any, seconds: float | None) -> float:
    """How long the processes of a strategy wait for one another: its own ``timeout`` where it has been given one.

    Raises:
        InputError: not a positive number, or another than the strategy's own.
    """
    if seconds is not None and not 0 < seconds <= LONGEST_TIMEOUT:
        raise InputError(f"timeout: {seconds}; expected a positive number of seconds, at most a year")
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


def check_precision(wanted: Any, trainer: pl.Trainer) -> None:
    """Refuses a precision that Lightning would silently turn into another.

    Raises:
        InputError: float16 autocast on a CPU.
    """
    if str(wanted) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise InputError(
            f"trainer.precision: {wanted} is not there on a {trainer.strategy.root_device.type}, where Lightning would "
            f"take {trainer.precision}; use bf16-mixed, 32-true or 64-true"
        )


def dtype_of(trainer: pl.Trainer) -> torch.dtype | None:
    """Of the floating numbers that the trainer's precision makes of every module; None where it leaves them."""
    probe: Any = torch.nn.Linear(1, 1, dtype=torch.float32)
    converted: Any = trainer.precision_plugin.convert_module(probe)
    made: torch.dtype = converted.weight.dtype
    return None if made == torch.float32 else made


def check_sharding(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuses ``ModelParallelStrategy`` where its checkpoints are folders or there is nothing to shard.

    Raises:
        InputError: it is so.
    """
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    if trainer.strategy._save_distributed_checkpoint:
        raise InputError(
            "trainer.strategy: ModelParallelStrategy would write checkpoints in parts, which no single process reads; "
            "give it save_distributed_checkpoint: false, as configs/trainer/fsdp2.yaml does"
        )
    if not is_overridden("configure_model", module):
        refuse_sharding(module)


def requeue_job(run_dir: Path) -> str:
    """Hands this SLURM job back to its queue; what to say of it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        reason = "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
    except OSError as error:
        reason = f"scontrol: {error.strerror}"
    if reason:
        return f"job {job} could not be requeued ({reason}); go on from {run_dir}/checkpoints/last.ckpt"
    return f"job {job} is requeued and goes on in {run_dir}"


def of_a_process(error: BaseException) -> BaseException:
    """The error that a forked or spawned process had, where it is one of input; one line where they did not meet."""
    if type(error) is ValueError and str(error).startswith("You set `"):
        # Lightning's: devices or nodes that are not the launcher's.
        return InputError(f"trainer: {' '.join(str(error).split())}")
    if is_echo(error):
        return InputError(f"trainer: the processes did not meet: {str(error).splitlines()[0]}")
    if type(error).__name__ != "ProcessRaisedException":
        return error
    last = str(error).strip().splitlines()[-1]
    found = re.match(r"[\w.]*\bInputError: (.*)", last)
    return InputError(found[1]) if found else error
