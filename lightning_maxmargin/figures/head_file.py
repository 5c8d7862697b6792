"""``heads.json`` of a run directory, read back and checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_maxmargin.figures import json_text

#: Of which type each part of ``heads.json`` is.
PARTS = {"heads": list, "steps": list, "tokens": list, "measured": list, "numbers": list, "seen": list}
DAMAGED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


def read_heads(path: Path) -> dict[str, Any] | None:
    """``heads.json``; None where the run has none.

    Raises:
        ValueError: it is damaged; the message says where.
    """
    if not path.is_file():
        return None
    found = json_text.load(path.read_text(encoding="utf-8"))
    wrong = [k for k, kind in PARTS.items() if not isinstance(found, dict) or not isinstance(found.get(k), kind)]
    if wrong:
        raise ValueError(f"`{wrong[0]}` is missing or not what it should be")
    heads, steps, samples = len(found["heads"]), len(found["steps"]), len(found["tokens"])
    if len(found["measured"]) != steps or not all(isinstance(step, int | None) for step in found["measured"]):
        raise ValueError(f"`measured` is not of {steps} steps")
    for part in ("numbers", "seen"):
        if len(found[part]) != steps or any(not isinstance(row, list) or len(row) != heads for row in found[part]):
            raise ValueError(f"`{part}` is not of {steps} steps and {heads} heads")
    if not steps:
        raise ValueError("there are no evaluations in it")
    if not all(isinstance(x, int | float | None) for row in found["numbers"] for x in row):
        raise ValueError("`numbers` holds what is no number")
    if not all(x is None or math.isfinite(x) for row in found["numbers"] for x in row):
        raise ValueError("`numbers` holds what is not finite")
    if not all(isinstance(sample, list) for sample in found["tokens"]):
        raise ValueError("`tokens` is not of lists")
    if not all(isinstance(step, int | float) and math.isfinite(step) for step in found["steps"]):
        raise ValueError("`steps` holds what is no number")
    for row in (looks for step in found["seen"] for looks in step):
        if samples and len(row) != samples:
            raise ValueError(f"`seen` is not of {samples} samples")
        if not all(isinstance(t, int) and isinstance(w, int) and t >= 0 for look in row for t, w in look):
            raise ValueError("`seen` holds what is no position and weight")
    return found
