"""Rates and decays of the parts of a text selector, and how the rates fall at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.rate import cooled
from lightning_maxmargin.text.tuning import encoder_parameters


def text_groups(model: MaxMarginForSequenceClassification, options: Any) -> list[dict[str, Any]]:
    """The groups ``attention``, ``head`` and ``encoder`` of a text selector, without those that are frozen.

    Args:
        model: whose.
        options: ``lr``, ``attention_decay``, ``head_decay`` and ``finetune_lr``.
    """
    selectors = list(model.parts)
    groups = [
        {"params": [p for s in selectors for p in s.attention_parameters.values()], "name": "attention",
         "lr": options.lr, "weight_decay": options.attention_decay},
        {"params": [p for s in selectors for p in s.head_parameters.values()], "name": "head",
         "lr": options.lr, "weight_decay": options.head_decay},
        {"params": encoder_parameters(model.encoder), "name": "encoder",
         "lr": options.finetune_lr, "weight_decay": 0.01},
    ]  # fmt: skip
    return [{**g, "params": kept} for g in groups if (kept := [p for p in g["params"] if p.requires_grad])]


def cooldown(optimizer: Optimizer, trainer: pl.Trainer, share: float, finetune_epochs: int) -> LambdaLR:
    """The rates of all groups, those of ``encoder`` over its own epochs.

    Args:
        optimizer: of the run.
        trainer: which knows its steps.
        share: of the steps, the last ones, over which rates fall.
        finetune_epochs: the last epochs, in which the encoder is trained.

    Raises:
        InputError: the run has no last step.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise InputError("model.cooldown: the run has no last step; give trainer.max_epochs, or --model.cooldown 0")
    epochs = trainer.max_epochs or -1
    tuned = steps if epochs == -1 else round(steps * min(1.0, finetune_epochs / epochs))
    last = {"encoder": int(tuned)}
    factors: list[Callable[[int], float]] = [
        partial(cooled, steps=int(steps), share=share, last=last.get(group["name"])) for group in optimizer.param_groups
    ]
    return LambdaLR(optimizer, factors)
