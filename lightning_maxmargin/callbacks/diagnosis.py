"""What a run's numbers mean: saturation, stalls, selections that do not converge, SVMs without a solution."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule

#: A direction this far from every limit has not converged in any sense a plot would show.
UNCONVERGED_GAP = 1e-4


def diagnosis(history: list[dict[str, Any]], pl_module: LightningModule) -> str:
    """Everything worth a warning, as sentences; empty when the run simply converged.

    Args:
        history: the monitor's numbers, oldest first.
        pl_module: the module trained, for its gradient mode and dtype.
    """
    if not history:
        return ""
    gradient = getattr(pl_module, "gradient", None)
    selector = getattr(pl_module, "selector", None)
    exact = getattr(selector, "num_classes", 2) == 2 and getattr(selector, "linear", True)
    notes = [
        _stall(history, str(gradient), next(pl_module.parameters()).dtype, exact),
        _head(history[-1], _is_of_text(pl_module)),
        _converged(history),
    ]
    return " ".join(note for note in notes if note)


def _stall(history: list[dict[str, Any]], gradient: str, dtype: torch.dtype, exact: bool) -> str:
    """Softmax saturated, and the direction far from the limit that theory gives at this norm ratio."""
    eps = torch.finfo(dtype).eps
    # Rows of before the run went on may be an older version's, which knew fewer keys.
    saturated = [row for row in history if (1 - (row.get("attention/selected_mass") or 0)) < eps]
    if gradient == "exact" or not saturated:
        return ""
    message = (
        f"Softmax saturated at step {saturated[0]['step']}: 1 - s_alpha is below the rounding of "
        f"{str(dtype).removeprefix('torch.')} ({eps:.1e})."
    )
    if gradient == "naive":
        message += " From there on gradient: naive has only rounding noise to follow."
    theory = next((k for k in ("rate_coupled", "strict") if history[-1][f"direction_gap/{k}"] is not None), None)
    gap = None if theory is None else history[-1][f"direction_gap/{theory}"]
    if gap is None or gap < UNCONVERGED_GAP:
        return message if gradient == "naive" else ""
    gaps = [row.get(f"direction_gap/{theory}") for row in history]
    best = min(x for x in gaps if x is not None)
    if gap < 2 * best:
        return message if gradient == "naive" else ""  # still falling
    remedy = "Use gradient: exact." if exact else "Stop before saturation: this head has no exact direction."
    return (
        f"{message} The run has stalled: its direction gap to the {str(theory).replace('_', '-')} limit, where it "
        f"belongs at this norm ratio, is {gap:.1e} (smallest on the way: {best:.1e}), whatever limit it is nearest to. "
        f"{remedy}"
    )


def _is_of_text(pl_module: LightningModule) -> bool:
    """Whether the tokens are those of an encoder."""
    trainer = getattr(pl_module, "_trainer", None)
    return hasattr(getattr(trainer, "datamodule", None), "encoder")


def _head(last: dict[str, Any], of_text: bool) -> str:
    if last.get("status/head") != "infeasible":
        return ""
    usual = ", as is usual for real text" if of_text else ""
    met, tenth = last.get("margin/head_met"), last.get("margin/head_tenth")
    share = "" if met is None else f" It meets {met:.1%} of them; the 10 % quantile of Y v'x/||v|| is {tenth:.2g}."
    return (
        f"The label SVM is infeasible{usual}: no head separates the labels of the selected tokens, which a checked "
        f"Farkas vector certifies.{share} So the head has no max-margin direction, and of the limits of the attention "
        "only the strict one is defined."
    )


def _converged(history: list[dict[str, Any]]) -> str:
    """A hard-selection limit needs a margin that stays away from zero; say so where it does not."""
    relative = history[-1]["relative_margin/attention"]
    if relative is None or relative > 0.1:
        return ""
    return (
        f"The selection has not converged: the attention margin is {relative:.1e} of its SVM's. Either the run is too "
        "short or this data set has no hard-selection limit (the margin tends to 0 and attention stays soft)."
    )
