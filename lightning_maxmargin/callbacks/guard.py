"""Stops at the first NaN or Inf, before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lightning_maxmargin.callbacks.later import WEIGHTS, LaterCheck, own_part
from lightning_maxmargin.core import waiting
from lightning_maxmargin.errors import InputError, NonFiniteError

#: Options of an optimizer with which nothing is trained where they are infinite.
FINITE = ("lr", "weight_decay", "momentum")
#: Weights, in numbers, that are kept from before each step; of more the last checkpoint is the last good one.
KEPT_NUMBERS = 1_000_000


def check_options(optimizer: Optimizer) -> None:
    """Refuses options of an optimizer that are NaN, or too large for the dtype of its weights (of rates the squares).

    Raises:
        InputError: one is so.

    Example:
        >>> check_options(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e300))
        Traceback (most recent call last):
        lightning_maxmargin.errors.InputError: model.optimizer.lr: 1e+300 is too large for float32; give a smaller one
    """
    for group in optimizer.param_groups:
        dtypes = [p.dtype for p in group["params"] if p.dtype.is_floating_point]
        for option, value in group.items():
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, float) and dtypes and not _fits(x, dtypes[0], option in FINITE):
                    part = group.get("name")
                    key = f"{part}_lr" if part and option == "lr" else f"optimizer.{option}"
                    dtype = str(dtypes[0]).removeprefix("torch.")
                    raise InputError(f"model.{key}: {x} is too large for {dtype}; give a smaller one")


def _fits(x: float, dtype: torch.dtype, finite: bool) -> bool:
    if math.isinf(x):
        return not finite
    # A step is as long as a rate, and a norm is of squares.
    return abs(x) <= torch.finfo(dtype).max ** (0.5 if finite else 1.0)


class FiniteGuard(Callback):
    """Checks every gradient before every optimizer step of any LightningModule, and every weight after it.

    At the first NaN or Inf it stops with the tensor, the step and the samples (or the rate) named, and keeps the last
    good weights in ``checkpoints/last_good.ckpt`` of the run directory, without what the optimizer remembers where that
    is not finite. Of a large model whose weights overflow, or where a buffer does, ``last.ckpt`` has them. A Trainer
    alone trains on with ruined weights and exits 0.

    On a GPU no step waits for the check: its answer is read up to 16 optimizer steps later (and before a validation and
    at the end), and until then the weights stay as they were before the bad step (see ``callbacks/later.py``).

    Raises:
        NonFiniteError: a gradient or a weight is not finite.
        InputError: before training, an option of an optimizer is no number of its weights' dtype.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._names: list[str] = []
        self._before: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        self._at_once, self._later = True, LaterCheck({})
        # With the step that each begins at, as far back as one may be asked for.
        self._batches: list[tuple[int, Any]] = []
        self._watched: set[str] = set()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watched = finite_buffers(pl_module)
        for optimizer in trainer.optimizers:
            check_options(optimizer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        named = dict(pl_module.named_parameters())
        self._names, self._batches = list(named), []
        places: dict[Tensor, int] = {p: k for k, p in enumerate(named.values())}
        self._at_once, self._later = all(map(waiting.answers_at_once, places)), LaterCheck(places)

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                look(optimizer)
                return None

            # Under automatic optimization the closure, which the step calls, makes the gradients.
            def then_look() -> Any:
                loss = closure()
                look(optimizer)
                return loss

            return (args[0], then_look, *args[2:]), {k: x for k, x in kwargs.items() if k != "closure"}

        def look(optimizer: Optimizer) -> None:
            moving = _moving(optimizer)
            if moving and not self._at_once:
                self._later.before_step(moving, pl_module.global_step)
                return
            for p in moving:
                if not _all_finite(p.grad):  # type: ignore[arg-type]
                    self._stop(pl_module, pl_module.global_step, places.get(p, -1))
            few = sum(p.numel() for p in moving) <= KEPT_NUMBERS
            self._before = [p.detach().clone() for p in moving] if few else []

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            moving = _moving(optimizer)
            if self._at_once:
                bad = next((p for p in moving if not _all_finite(p.detach())), None)
                if bad is not None:
                    for p, kept in zip(moving, self._before, strict=False):
                        p.data.copy_(kept)
                    self._stop(pl_module, pl_module.global_step, WEIGHTS + places.get(bad, -1))
            elif moving:
                self._later.after_step(moving)
                self._read(pl_module)

        self._optimizers = trainer.optimizers
        hooks = [(o.register_step_pre_hook(before), o.register_step_post_hook(after)) for o in trainer.optimizers]
        self._handles = [handle for pair in hooks for handle in pair]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((trainer.global_step, batch))
        if self._at_once:
            del self._batches[:-1]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(pl_module, now=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for handle in self._handles:
            handle.remove()
        self._read(pl_module, now=True)
        self._batches = []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteError):
            return
        ruined, agree = ruined_state(trainer, self._watched), trainer.strategy.reduce_boolean_decision
        if agree(is_finite(pl_module) and ruined not in self._watched, all=True):
            # With what the optimizer remembers, where that is good as well, of all processes.
            path = Path(trainer.default_root_dir) / "checkpoints" / "last_good.ckpt"
            trainer.save_checkpoint(path, weights_only=not agree(ruined is None, all=True))

    def _read(self, pl_module: pl.LightningModule, now: bool = False) -> None:
        """Stops if it is known by now, or asked now, that a gradient was not finite."""
        known = (pl_module.global_step, self._later.answer()) if now else self._later.due()
        if known is None:
            return
        until, found = known
        if found is not None:
            self._stop(pl_module, *found)
        # Batches before the one of that step are not asked for again.
        while len(self._batches) > 1 and self._batches[1][0] <= until:
            del self._batches[0]

    def _stop(self, pl_module: pl.LightningModule, step: int, place: int) -> None:
        is_weight, place = place >= WEIGHTS - 1, place % WEIGHTS if place >= WEIGHTS else place
        name = self._names[place] if 0 <= place < len(self._names) else "a parameter"
        if is_weight:
            rates = sorted({f"{g['lr']:g}" for o in self._optimizers for g in o.param_groups if "lr" in g})
            at = f" with rate {' and '.join(rates)}" if rates else ""
            kept = "its weights of before are kept" if is_finite(pl_module) else "checkpoints/last.ckpt is of before"
            raise NonFiniteError(f"{name} overflows in step {step}{at}: {kept}; lower the learning rate")
        samples = self._bad_samples(pl_module, step)
        where = f" (samples {', '.join(map(str, samples[:10]))})" if samples else ""
        raise NonFiniteError(
            f"the gradient of {name} is not finite at step {step}{where}: stopped before the weights "
            "changed; check these samples, or lower the learning rate"
        )

    def _bad_samples(self, pl_module: pl.LightningModule, step: int) -> list[int]:
        batch = next((batch for start, batch in reversed(self._batches) if start <= step), None)
        losses = getattr(pl_module, "sample_losses", None)
        index = batch.get("index") if isinstance(batch, dict) else getattr(batch, "index", None)
        if losses is None or index is None:
            return []
        with torch.no_grad():
            return index[~losses(batch).isfinite()].tolist()


def _all_finite(x: Tensor) -> bool:
    """One number is checked instead of a tensor: a sum is finite only if every entry is, but for overflow."""
    return math.isfinite(x.sum()) or bool(x.isfinite().all())


def _moving(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def is_finite(pl_module: pl.LightningModule) -> bool:
    """Whether all weights that this process holds are finite."""
    return all(bool(torch.isfinite(own_part(p)).all()) for p in pl_module.parameters())


def finite_buffers(pl_module: pl.LightningModule) -> set[str]:
    """Names of buffers of checkpoints that hold finite numbers alone, as masks do not."""
    # Not by their state_dict, for which sharded modules gather every weight.
    passing = {
        f"{place}.{name}".lstrip(".")
        for place, module in pl_module.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return {
        name for name, x in pl_module.named_buffers() if name not in passing and _can_be_told(x) and _holds_finite(x)
    }


def _can_be_told(x: Tensor) -> bool:
    """Whether torch tells which of these numbers are finite: not of sparse ones, nor of eight bits."""
    return x.layout == torch.strided and (x.is_complex() or (x.is_floating_point() and x.element_size() > 1))


def _holds_finite(x: Tensor) -> bool:
    return bool(own_part(x).isfinite().all())


def ruined_state(trainer: pl.Trainer, watched: Collection[str] = ()) -> str | None:
    """What is not finite beside the weights, of this process: a buffer, or what an optimizer remembers of a weight.

    Such a run trains on without a NaN in any gradient: with an infinite second moment Adam moves its weight no more.

    Args:
        trainer: of the run.
        watched: buffers that were finite at the start.

    Returns:
        Its name, or None.
    """
    module = trainer.lightning_module
    for name, x in module.named_buffers():
        if name in watched and not _holds_finite(x):
            return name
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    for optimizer in trainer.optimizers:
        for p, kept in optimizer.state.items():
            for option, x in kept.items() if isinstance(kept, Mapping) else ():
                if isinstance(x, Tensor) and x.ndim and _can_be_told(x) and not _holds_finite(x):
                    return f"{option} of {names.get(p, 'a parameter')} in {type(optimizer).__name__}"
    return None
