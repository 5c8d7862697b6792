"""Which arguments of a text selector go together."""

from __future__ import annotations

import math
from typing import Any

from lightning_maxmargin.errors import InputError


def check_options(h: Any, makes_schedule: bool) -> None:
    """Refuses what is out of range or does not go together.

    Args:
        h: the arguments of a :class:`~lightning_maxmargin.modules.text.TextSelection`, by name.
        makes_schedule: whether it has a schedule of its own.

    Raises:
        InputError: it is so.
    """
    if h.parametrization == "p" and (h.query == "cls" or h.rank):
        raise InputError("model: query cls and rank need parametrization W or KQ; p is the same for all texts")
    if h.rank and h.parametrization != "KQ":
        raise InputError("model.rank: is of K and Q; use parametrization KQ")
    if h.finetune_layers and h.lora_rank:
        raise InputError("model: finetune_layers trains layers, lora_rank adapters instead; give one of them")
    if h.train == "head" and h.init_from is None:
        raise InputError("model.train: head needs the attention of an earlier selector; name it with init_from")
    for name in ("lr", "token_scale", "finetune_lr"):
        if not 0 < h[name] < math.inf:
            raise InputError(f"model.{name}: {h[name]}; expected a positive number")
    for name in ("attention_decay", "head_decay", "finetune_layers", "lora_rank", "finetune_epochs"):
        if not 0 <= h[name] < math.inf:
            raise InputError(f"model.{name}: {h[name]}; expected zero or more")
    for name in ("label_smoothing", "dropout"):
        if not 0 <= h[name] < 1:
            raise InputError(f"model.{name}: {h[name]}; expected a number from 0 to below 1")
    if not 0 <= h.cooldown <= 1:
        raise InputError(f"model.cooldown: {h.cooldown}; expected a share from 0 to 1")
    if h.cooldown and makes_schedule:
        raise InputError("model: cooldown and lr_scheduler both set the rate; give cooldown 0 beside a schedule")
