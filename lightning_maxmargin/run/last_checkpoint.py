"""``checkpoints/last.ckpt`` by a clock of its own: Lightning saves nothing by time where optimisation is manual."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.atomic import link_whole
from lightning_maxmargin.callbacks.guard import finite_buffers, is_finite, ruined_state
from lightning_maxmargin.callbacks.next_epoch import begin_next_epoch
from lightning_maxmargin.errors import NonFiniteError, OutputError
from lightning_maxmargin.run.checkpoints import BEFORE, LAST, checksum_path
from lightning_maxmargin.run.resume import optimizer_name

#: What ``save_last`` of a user's ModelCheckpoint is called.
NEWEST = "newest"
#: Seconds between two saves.
SAVE_EVERY = 30.0


class LastCheckpoint(Checkpoint):
    """Saves ``last.ckpt`` every so many seconds, at the last step, and where the run stops before it.

    The one before is kept as ``before.ckpt``, which ``--ckpt_path last`` takes should the last be damaged. On a full
    disk training goes on, warned about once, with the checkpoint that is there. Weights that are not finite are not
    saved.

    Args:
        folder: ``checkpoints/`` of the run.
        every: seconds, by rank 0's clock.

    Attributes:
        due: whether to save after this ``training_step``; :class:`~lightning_maxmargin.callbacks.Interrupt`, which asks
            all processes anyway, sets it on all alike.
    """

    def __init__(self, folder: Path, every: float = SAVE_EVERY) -> None:
        self.folder, self.every, self.due = folder, every, False
        self._saved_at, self._saved_step, self._warned = time.monotonic(), -1, False
        self._watched: set[str] = set()

    @property
    def is_time(self) -> bool:
        """Whether the last save is long enough ago, by this process's clock."""
        return time.monotonic() - self._saved_at >= self.every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begin_next_epoch(trainer)
        self._saved_at, self._watched = time.monotonic(), finite_buffers(pl_module)
        if trainer.ckpt_path and Path(trainer.ckpt_path).parent.absolute() == self.folder.absolute():
            self._saved_step = trainer.global_step  # what a run that trains nothing more would save again

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        # At the last step here and not at the end of fit: by then Lightning has closed the epoch and dropped the
        # loader's place in it, and a resumed run would begin the epoch again.
        if trainer.global_step == trainer.max_steps:
            self.save(trainer)
        elif self.due:
            self.save(trainer, go_on=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # By which a run that goes on with another one is refused.
        checkpoint["optimizers"] = [optimizer_name(optimizer) for optimizer in trainer.optimizers]

    @property
    def _kept(self) -> str:
        return f"checkpoints/{LAST} is of before" if (self.folder / LAST).is_file() else "nothing was saved yet"

    def save(self, trainer: pl.Trainer, go_on: bool = False) -> None:
        """Saves now, on all processes, which all must call it.

        Args:
            trainer: of the run.
            go_on: whether a checkpoint that cannot be written is a warning, and the one before stays.

        Raises:
            OutputError: it cannot be written, and ``go_on`` is false: at the run's last step, or where it is stopped.
            NonFiniteError: a buffer, or what an optimizer remembers, is not finite: nothing more would be learnt.
        """
        self.due, self._saved_at = False, time.monotonic()
        if not trainer.strategy.reduce_boolean_decision(is_finite(trainer.lightning_module), all=True):
            return
        ruined = ruined_state(trainer, self._watched)
        if not trainer.strategy.reduce_boolean_decision(ruined is None, all=True):
            raise NonFiniteError(
                f"{ruined or 'a number of another process'} is not finite by step {trainer.global_step}: {self._kept}; "
                "lower the learning rate, or clip gradients"
            )
        if trainer.is_global_zero:
            keep_before(self.folder / LAST)
        writer: Any = trainer.strategy.checkpoint_io
        failed: list[OSError] = []
        writer.tolerated = failed if go_on else None
        try:
            trainer.save_checkpoint(self.folder / LAST)
        except OutputError as error:
            raise OutputError(f"{error} at step {trainer.global_step}: {self._kept}") from error
        finally:
            # Another callback's checkpoint that cannot be written is its own matter.
            writer.tolerated = None
        # Only the first process writes, and all of them must know whether to save again.
        if not trainer.strategy.broadcast(bool(failed)):
            self._saved_step = trainer.global_step
        elif failed and not self._warned:
            reason = failed[0].strerror or str(failed[0])
            rank_zero_warn(
                f"{self.folder / LAST} cannot be written ({reason}); training goes on, and the old one stays"
            )
            self._warned = True


def leave_last_to_the_run(callbacks: Iterable[Callback], folder: Path) -> None:
    """Gives the ``save_last`` of a ModelCheckpoint another name, so that ``last.ckpt`` has one writer; told in a line.

    Args:
        callbacks: of a trainer.
        folder: ``checkpoints/`` of the run.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_last:
            if callback.dirpath is not None and Path(callback.dirpath).absolute() != folder:
                continue
            callback.CHECKPOINT_NAME_LAST = NEWEST
            rank_zero_warn(f"ModelCheckpoint(save_last) writes {NEWEST}.ckpt: {LAST} is what the run itself saves")


def keep_before(path: Path) -> None:
    """Keeps this checkpoint and its checksum as ``before.ckpt`` beside it; it stays where it is as well."""
    if not path.is_file() or path.is_symlink():
        return
    before = path.with_name(BEFORE)
    with suppress(OSError):  # of a disk that cannot be written now; the save itself says so
        link_whole(path, before)
        link_whole(checksum_path(path), checksum_path(before))
