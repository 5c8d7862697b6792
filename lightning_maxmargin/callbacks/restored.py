"""What a checkpoint says of Lightning's own callbacks: how far they were. What the user says of them now counts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from lightning_maxmargin.errors import InputError

#: Where a reason to stop says which value it was.
VALUE = re.compile(r" = (\S+)")


def keep_words(callbacks: Iterable[Callback], states: dict[Any, Any], may_stop: bool = True) -> None:
    """Changes the states of a checkpoint, before they are loaded, to what the callbacks of this run are told.

    Lightning takes an EarlyStopping's ``patience`` from the checkpoint over the one that is given now, keeps more
    checkpoints than a lower ``save_top_k`` says, and trains a bit more at every resume of a run that is over.

    Args:
        callbacks: of the trainer that resumes.
        states: of the checkpoint, by ``state_key``.
        may_stop: whether the run may end where the checkpoint is; before its least steps no EarlyStopping has ended it.

    Raises:
        InputError: a callback has ended the run, and would again by the same words: the message says which.
    """
    for callback in callbacks:
        state = states.get(callback.state_key, states.get(callback._legacy_state_key))
        if not isinstance(state, dict):
            continue
        if isinstance(callback, EarlyStopping):
            _keep_patience(callback, state, may_stop)
        elif isinstance(callback, ModelCheckpoint):
            _keep_top_k(callback, state)
        elif isinstance(callback, Timer):
            _refuse_used_up(callback, state)


def may_stop(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether a run may end where a checkpoint is: Lightning trains on up to the least steps and epochs."""
    enough = checkpoint.get("global_step", 0) >= (trainer.min_steps or 0)
    return enough and checkpoint.get("epoch", 0) >= (trainer.min_epochs or 0)


def _keep_patience(callback: EarlyStopping, state: dict[str, Any], may_stop: bool) -> None:
    state["patience"] = callback.patience
    reason = state.get("stopping_reason_message")
    if reason is None or not may_stop:
        return
    if (word := _stops_again(callback, state, reason)) is not None:
        told = reason.removesuffix(" Signaling Trainer to stop.").removesuffix(".")
        raise InputError(
            f"trainer.callbacks: EarlyStopping has ended this run ({told}); to go on {word}, or leave it out"
        )
    # It has not ended the run that goes on.
    state |= {"stopping_reason": EarlyStoppingReason.NOT_STOPPED.value, "stopping_reason_message": None}
    state["stopped_epoch"] = 0


def _stops_again(callback: EarlyStopping, state: dict[str, Any], reason: str) -> str | None:
    """What to say otherwise where the callback would stop as it has stopped before; None where it would not."""
    waited = state["wait_count"]
    if state.get("stopping_reason") == EarlyStoppingReason.PATIENCE_EXHAUSTED.value:
        return f"raise its patience above {waited}" if waited >= callback.patience else None
    found = VALUE.search(reason)
    try:
        value = torch.tensor(float(found[1])) if found else None
    except ValueError:
        value = None
    if value is None:
        return None
    better = callback.monitor_op
    if callback.check_finite and not torch.isfinite(value):
        return "change its check_finite"
    if callback.stopping_threshold is not None and better(value, callback.stopping_threshold):
        return "change its stopping_threshold"
    if callback.divergence_threshold is not None and better(-value, -callback.divergence_threshold):
        return "change its divergence_threshold"
    return None


def _keep_top_k(callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    """Forgets what is beyond ``save_top_k``; the files stay: a run that goes on removes none of the one before."""
    kept, most = state.get("best_k_models") or {}, callback.save_top_k
    if most < 0 or len(kept) <= most:
        return
    best_first = sorted(kept, key=lambda path: float(kept[path]), reverse=callback.mode == "max")
    state["best_k_models"] = {path: kept[path] for path in best_first[:most]}
    if most:
        state["kth_best_model_path"] = best_first[most - 1]
        state["kth_value"] = kept[best_first[most - 1]]


def _refuse_used_up(callback: Timer, state: dict[str, Any]) -> None:
    """Lightning would train until the next step or epoch, and end as a run that is done."""
    elapsed, most = state.get("time_elapsed", {}).get("train", 0), callback._duration
    if most is not None and elapsed >= most:
        raise InputError(f"trainer.max_time: all {most:g} s were used before the checkpoint; give more to go on")
