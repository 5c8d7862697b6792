"""How many optimisation steps one ``training_step`` may take."""

from __future__ import annotations

import pytorch_lightning as pl


def steps_now(trainer: pl.Trainer, pause_at: int | None, inner: int) -> int:
    """Up to ``inner``, but not past the last step nor past one that a callback wants to see."""
    stops = [s for s in (trainer.max_steps, pause_at) if s is not None and s > trainer.global_step]
    return min([inner, *(s - trainer.global_step for s in stops)])
