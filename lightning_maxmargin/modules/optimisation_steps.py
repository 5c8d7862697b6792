"""Optimisation steps, many in one ``training_step``: by exact directions, or by autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_maxmargin.core.exact import Reduce


def exact_steps(
    module: pl.LightningModule,
    optimizer: LightningOptimizer,
    steps: int,
    fill: Callable[[], Tensor],
    after: Callable[[], None],
) -> Tensor:
    """Makes so many steps by exact gradients; returns the loss before the last one.

    Args:
        module: that is trained.
        optimizer: of Lightning's, which counts the steps.
        steps: how many.
        fill: sets the gradients and returns the loss, see
            :func:`~lightning_maxmargin.modules.gradients.set_exact_gradients`.
        after: what follows each step.
    """
    raw = optimizer.optimizer
    hooked = _steps_are_hooked(module)
    loss = torch.zeros((), device=module.device)
    # Outside autocast: the direction is exact in the dtype of the weights.
    with torch.no_grad(), torch.autocast(module.device.type, enabled=False):
        for _ in range(steps):
            loss = fill()
            if hooked:
                optimizer.step()
            else:
                optimizer._on_before_step()
                raw.step()
                optimizer._on_after_step()
            after()
    return loss


def autograd_steps(
    module: pl.LightningModule,
    optimizer: LightningOptimizer,
    steps: int,
    loss_of: Callable[[], Tensor],
    reduce: Reduce,
    after: Callable[[], None],
) -> Tensor:
    """Likewise, by the gradients of autograd.

    Args:
        module: that is trained.
        optimizer: of Lightning's, which counts the steps.
        steps: how many.
        loss_of: this process's share of the loss.
        reduce: over the processes.
        after: what follows each step.
    """
    for _ in range(steps):
        module.optimizers(use_pl_optimizer=False).zero_grad()  # type: ignore[union-attr]
        share = loss_of()
        # DDP averages gradients over ranks, so the sum over this rank's part is multiplied by their number.
        module.manual_backward(share * module.trainer.world_size)
        loss = reduce.sum(share.detach())
        optimizer.step(partial(_same, loss))
        after()
    return loss


def _steps_are_hooked(module: pl.LightningModule) -> bool:
    """Whether someone listens to single steps: calling the hooks of all callbacks is a sixth of a small step."""
    trainer = module.trainer
    heard = any(is_overridden("on_before_optimizer_step", c, Callback) for c in trainer.callbacks)  # type: ignore[attr-defined]
    heard = heard or is_overridden("on_before_optimizer_step", module, pl.LightningModule)
    # A gradient scaler (16-mixed on a GPU) would undo a scale that exact directions never had.
    return heard and getattr(trainer.precision_plugin, "scaler", None) is None


def _same(loss: Tensor) -> Tensor:
    """The closure of an optimizer that reads the loss: it is known already."""
    return loss
