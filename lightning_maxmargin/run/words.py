"""What a command says of Trainer and run: refused before anything is made where it cannot be, or cannot be done."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_maxmargin.errors import InputError, check_seed
from lightning_maxmargin.run.flat import flattened

#: The least of what counts something; Lightning takes less than some of these, and divides by it or never ends.
LEAST = {
    "num_nodes": 1, "max_steps": -1, "max_epochs": -1, "min_steps": 0, "min_epochs": 0, "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1, "log_every_n_steps": 0, "accumulate_grad_batches": 1, "fast_dev_run": 0,
    "reload_dataloaders_every_n_epochs": 0, "gradient_clip_val": 0,
}  # fmt: skip
#: Of a number that a machine counts with.
MOST = 2**63 - 1
#: With zero of these a run would end as one that is done, and has trained nothing.
TRAINS_NOTHING = ("max_steps", "max_epochs", "limit_train_batches")
#: Processes on a core that are a slip of the pen: each takes .5 GB.
MOST_PROCESSES_PER_CORE = 32


def check_words(config: Mapping[str, Any], subcommand: str) -> None:
    """Refuses words that Lightning would take and then not do, or fail on far from the word.

    Args:
        config: of the command, parsed.
        subcommand: its name.

    Raises:
        InputError: one is such; the message names the key.
    """
    trainer = config["trainer"]
    _refuse_huge(config)
    for key in ("trainer", "monitor", "tokens"):
        if not isinstance(config.get(key), Mapping | Namespace):
            raise InputError(f"{key}: {config.get(key)} is none of its keys; leave {key} out, or set them")
    seed = config.get("seed_everything")
    if not isinstance(seed, bool) and seed is not None:
        check_seed(seed, "seed_everything")
    for key, least in LEAST.items():
        if trainer.get(key) is not None and not least <= trainer[key] <= MOST:
            raise InputError(f"trainer.{key}: {trainer[key]}; expected a number from {least}")
    _check_devices(trainer.get("devices"))
    if subcommand == "fit":
        _check_training(trainer)


def _refuse_huge(config: Mapping[str, Any]) -> None:
    """A whole number that is more than any floating one passes for one, and overflows far from its word."""
    for name, value in flattened(config.as_dict() if isinstance(config, Namespace) else dict(config)):
        for x in value if isinstance(value, list | tuple) else [value]:
            if isinstance(x, int) and abs(x) > sys.float_info.max:
                raise InputError(f"{name}: {str(x)[:20]}... has more digits than any number here; give a smaller one")


def _check_training(trainer: Mapping[str, Any]) -> None:
    for key in TRAINS_NOTHING:
        if trainer.get(key) is not None and trainer[key] == 0:
            raise InputError(f"trainer.{key}: {trainer[key]} trains nothing; leave it out, or give a positive number")
    time = trainer.get("max_time")
    if time is not None and not seconds_of(time) > 0:
        raise InputError(f"trainer.max_time: {time} trains nothing; leave it out, or give a longer one")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        raise InputError(f"trainer.val_check_interval: {interval}; expected a positive number")
    for unit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and 0 <= most < least:
            raise InputError(f"trainer.min_{unit}: {least}, but trainer.max_{unit} is {most}; give one of them")
    if trainer.get("barebones"):
        raise InputError("trainer.barebones: true would leave no rows, checkpoints or summary; leave it out")
    if trainer.get("default_root_dir") is not None:
        raise InputError(
            f"trainer.default_root_dir: {trainer['default_root_dir']}, but a run is in --run_dir alone; give that"
        )


def seconds_of(max_time: Any) -> float:
    """How long the Trainer's ``max_time`` is, of a string DD:HH:MM:SS, or days, hours, minutes and seconds by name.

    Raises:
        InputError: it is neither.

    Example:
        >>> seconds_of("00:00:01:30"), seconds_of({"minutes": 2, "seconds": -30})
        (90.0, 90.0)
    """
    try:
        return Timer(max_time)._duration or 0.0
    except (MisconfigurationException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"trainer.max_time: {' '.join(str(error).split())}") from error


def _check_devices(devices: Any) -> None:
    count = int(devices) if isinstance(devices, str) and devices.strip().isdecimal() else devices
    most = MOST_PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if isinstance(count, int) and count > most:
        raise InputError(f"trainer.devices: {count} are more processes than this machine holds (at most {most})")


def given_words(trainer: Mapping[str, Any]) -> list[str]:
    """Names of what a command says of the Trainer otherwise than Lightning's own defaults.

    Example:
        >>> given_words({"max_steps": 5, "num_nodes": 1})
        ['max_steps']
    """
    defaults = trainer_defaults()
    return [key for key, value in trainer.items() if key in defaults and value != defaults[key]]


def trainer_defaults() -> dict[str, Any]:
    """Lightning's own, by name."""
    parameters = inspect.signature(pl.Trainer).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
