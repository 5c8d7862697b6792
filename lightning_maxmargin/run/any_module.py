"""A LightningModule of the user's own on the command line: how it is named, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl

from lightning_maxmargin.callbacks import MarginMonitor
from lightning_maxmargin.core import TokenSelector
from lightning_maxmargin.data.module_loaders import ModuleLoaders, has_loader
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.resume import configs_of, words_said

#: Models of this package, which have no loaders of their own.
OWN_MODELS = ("JointSelection", "Ensemble", "TextSelection")


def model_named(argv: Sequence[str]) -> str | None:
    """The class of the model that these arguments, or else the configs that they name, give; None where none does.

    Example:
        >>> model_named(["--model", "my.Model"]), model_named(["--model.lr", ".1", "--model=my.Other"])
        ('my.Model', 'my.Other')
        >>> model_named(["--model.lr", ".1"]) is None
        True
    """
    found: list[Any] = [config.get("model") for config in configs_of(argv)]
    found += [word.partition("=")[2] for word in argv if word.startswith("--model=")]
    found += [following for word, following in pairwise(argv) if word == "--model"]
    names = [model.get("class_path") if isinstance(model, Mapping) else model for model in found]
    return next((name for name in reversed(names) if isinstance(name, str)), None)


def is_own(name: str) -> bool:
    """Whether a class of this package is meant by a name.

    Example:
        >>> is_own("lightning_maxmargin.JointSelection"), is_own("mine.JointSelection"), is_own("Ensemble")
        (True, False, True)
    """
    module, _, last = name.rpartition(".")
    return last in OWN_MODELS and module.partition(".")[0] in ("", "lightning_maxmargin")


def ends_by_epochs(argv: Sequence[str]) -> bool:
    """Whether these arguments, or their configs, give epochs and no steps: the default of steps must not end them.

    Example:
        >>> ends_by_epochs(["--trainer.max_epochs", "3"]), ends_by_epochs(["--trainer.max_epochs=-1"])
        (True, False)
        >>> ends_by_epochs(["--trainer.max_epochs", "3", "--trainer.max_steps", "9"])
        False
    """
    said = words_said(argv)
    if "trainer.max_steps" in said or "trainer.max_epochs" not in said:
        return False
    trainers = [config.get("trainer") for config in configs_of(argv)]
    found = [trainer.get("max_epochs") for trainer in trainers if isinstance(trainer, Mapping)]
    found += [word.partition("=")[2] for word in argv if word.startswith("--trainer.max_epochs=")]
    found += [following for word, following in pairwise(argv) if word == "--trainer.max_epochs"]
    return bool(found) and all(str(x).isdecimal() for x in found if x is not None)


def refuse_without_data(module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Raises InputError where neither ``--data`` nor the module itself has anything to train on."""
    if isinstance(data, ModuleLoaders) and not has_loader(module, "train"):
        name = type(module).__name__
        raise InputError(f"data: {name} has no train_dataloader of its own; name a LightningDataModule with --data")


def refuse_unwatched(module: pl.LightningModule, callbacks: Sequence[Any]) -> None:
    """Raises InputError where the monitor has nothing to watch: a module that is not ours has no TokenSelector."""
    waits = any(type(callback) is MarginMonitor for callback in callbacks)
    if waits and not isinstance(getattr(module, "selector", None), TokenSelector):
        raise InputError(
            f"monitor.sources: {type(module).__name__} has no TokenSelector for the monitor; watch its attention heads "
            "with --monitor.sources auto"
        )
