"""What a checkpoint holds of a monitor: its history and its clock."""

from __future__ import annotations

import math
from typing import Any

from lightning_maxmargin.callbacks.budget import Budget
from lightning_maxmargin.errors import InputError


def state_of(history: list[dict[str, Any]], clock: Budget) -> dict[str, Any]:
    """The state of a monitor with this history and clock."""
    return {
        "history": history, "seconds": clock.spent, "run_seconds": clock.elapsed, "evaluations": clock.evaluations,
    }  # fmt: skip


def restored(state: dict[str, Any], name: str) -> tuple[list[dict[str, Any]], Budget]:
    """History and clock of a state.

    Args:
        state: of :func:`state_of`, as a checkpoint has it.
        name: of the monitor, for the message.

    Raises:
        InputError: it is no state of a monitor.
    """
    history = state.get("history")
    if not isinstance(history, list) or not all(map(_is_row, history)):
        raise InputError(f"ckpt_path: its {name} has no history; use another checkpoint")
    elapsed, made = state.get("run_seconds", 0.0), state.get("evaluations", len(history))
    clock: Any = (state.get("seconds"), elapsed, made)
    if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in clock):
        raise InputError(f"ckpt_path: its {name} has no clock; use another checkpoint")
    return history, Budget(1.0, 0, *clock)


def _is_row(row: Any) -> bool:
    """Whether a checkpoint's row of a history is one: its step, and numbers, words or nothing by name."""
    return isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_value, row.values()))


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)
