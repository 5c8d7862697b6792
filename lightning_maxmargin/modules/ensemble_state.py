"""What a checkpoint holds of an ensemble: weights, and what update rules remember."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.errors import InputError


def saved(state: EnsembleState) -> dict[str, Tensor]:
    """The tensors of a state by name, instances last; the state's own, not copies."""
    kept = {f"{name}/{kind}": x for name, part in state.remembered.items() for kind, x in part.items()}
    return {"attention": state.attention, "head": state.head, **kept}


def restore(state: EnsembleState, checkpoint: dict[str, Any], at: Tensor, count: int) -> None:
    """Puts the tensors and the number of steps of a checkpoint into a state, in place.

    Args:
        state: of the instances of this process.
        checkpoint: of all ``count`` instances.
        at: (b,), which of them are here.
        count: how many there are.

    Raises:
        InputError: the checkpoint is of other instances, or of another update rule.
    """
    found = dict(checkpoint.get("ensemble", {}))
    for name in ("attention", "head"):
        if f"momentum_{name}" in found:
            # Written when ensembles averaged directions, which are minus the gradients.
            found[f"{name}/momentum"] = -found[f"momentum_{name}"]
    for name, x in saved(state).items():
        if name not in found or found[name].shape != (*x.shape[:-1], count):
            raise InputError("ckpt_path: the checkpoint is of no such ensemble; give the one of this config")
        x.copy_(found[name][..., at])
    state.steps = checkpoint["ensemble_steps"]
    state.refresh()
