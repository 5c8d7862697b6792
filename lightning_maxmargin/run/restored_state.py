"""What a checkpoint says of optimizers, schedules and loops is held against those of the run, before it is put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.content import SUM


class RefuseOtherState(Callback):
    """A checkpoint without a sum may hold anything, and torch puts it into a schedule as it is.

    Args:
        path: of the checkpoint.

    Raises:
        InputError: it is of more or fewer schedules, or something in it is of another kind than the run's own: a word
            for a number, a list of another length, a key that lacks.
    """

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning loads optimizers and schedules after this, and weights before.
        content = trainer._checkpoint_connector._loaded_checkpoint
        if not content:
            return
        own = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        kept = content["lr_schedulers"]
        if len(kept) != len(own):
            raise InputError(
                f"ckpt_path: {self.path} is of {len(kept)} schedules of the rate, and this run has {len(own)}; "
                "give the model.lr_scheduler that it was trained with"
            )
        if SUM in content:
            return  # it is what a run has saved
        groups = [{"param_groups": [_options(g) for g in optimizer.param_groups]} for optimizer in trainer.optimizers]
        loops = trainer.fit_loop.state_dict()
        # What another Lightning does not count is left at zero.
        kept_loops = {name: count for name, count in content["loops"]["fit_loop"].items() if name in loops}
        loops = {name: loops[name] for name in kept_loops}
        named = {
            "lr_schedulers": (own, kept),
            "optimizer_states": (groups, content["optimizer_states"]),
            "loops.fit_loop": (loops, kept_loops),
        }
        for name, (mine, found) in named.items():
            if (wrong := first_misfit(mine, found)) is not None:
                raise InputError(
                    f"ckpt_path: {self.path} is none of this run's by its {name}{wrong}; use another checkpoint"
                )


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a group; how its parameters are numbered or named is the strategy's business."""
    return {name: value for name, value in group.items() if name != "params"}


def first_misfit(own: Any, kept: Any) -> str | None:
    """Where ``kept`` is of another kind than ``own``: a name for a number, a list of another length, a key that lacks.

    Whole and floating numbers are of one kind, and None may have become a number.

    Example:
        >>> first_misfit({"lrs": [0.1], "best": None}, {"lrs": [2], "best": 0.5, "more": ""}) is None
        True
        >>> first_misfit({"lrs": [0.1]}, {"lrs": ["x"]})
        ".lrs.0 ('x')"
    """
    if isinstance(own, Mapping):
        if not isinstance(kept, Mapping):
            return f" ({type(kept).__name__})"
        for key, value in own.items():
            wrong = first_misfit(value, kept[key]) if key in kept else " (missing)"
            if wrong is not None:
                return f".{key}{wrong}"
        return None
    if isinstance(own, list | tuple):
        if not isinstance(kept, list | tuple):
            return f" ({type(kept).__name__})"
        if len(kept) != len(own):
            return f" ({len(kept)} of them for {len(own)})"
        wrongs = (first_misfit(mine, found) for mine, found in zip(own, kept, strict=True))
        return next((f".{i}{wrong}" for i, wrong in enumerate(wrongs) if wrong is not None), None)
    return None if _is_alike(own, kept) else f" ({kept!r:.40})"


def _is_alike(own: Any, kept: Any) -> bool:
    if own is None:
        return kept is None or _is_number(kept)
    if _is_number(own):
        return _is_number(kept)
    return isinstance(kept, type(own))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | Tensor) and not isinstance(x, bool)
