"""The LightningModule: it wires model, loss, gradient and optimizer together; the mathematics is in ``core``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

from lightning_maxmargin.core import Loss, Sequences, TokenSelector, find_loss, select
from lightning_maxmargin.core.exact import Reduce
from lightning_maxmargin.core.losses import loss_per_sequence
from lightning_maxmargin.core.model import Init, Output
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import SelectionAccuracy, label_rows
from lightning_maxmargin.modules.default_dtype import double_default
from lightning_maxmargin.modules.gradients import (
    Gradient,
    choose_gradient,
    groups_of_log_loss,
    refuse_gradient,
    set_exact_gradients,
)
from lightning_maxmargin.modules.optimisation_steps import autograd_steps, exact_steps
from lightning_maxmargin.modules.parameter_groups import selector_groups
from lightning_maxmargin.modules.schedules import step_schedules, with_schedule
from lightning_maxmargin.modules.training_data import training_sequences
from lightning_maxmargin.noise import expect_no_validation
from lightning_maxmargin.optim import NormalizedGD, OptimizerPerGroup
from lightning_maxmargin.reduce import leave_group_at_exit, number_on, reduce_over
from lightning_maxmargin.schedule import steps_now


class JointSelection(pl.LightningModule):
    """Trains head v and attention W (or p) of f(X) = v' X' softmax(X W z), jointly or one of them.

    From ``value_dim`` on the arguments are those of :class:`TokenSelector`, which explains them in full.

    Args:
        dim: d, of the keys.
        loss: ``logistic``, ``exponential``, ``correlation`` (labels -1, 1) or ``cross_entropy`` (classes); a
            registered name, or a :class:`~lightning_maxmargin.core.losses.Loss` (``class_path`` in a config).
        gradient: ``exact`` (closed-form log-domain direction, any norm; linear binary heads), ``centred`` (autograd
            through centred pooling, true magnitudes, any head and loss) or ``naive`` (autograd through softmax, to show
            how it stalls). None takes ``exact`` where head and optimizer allow it, else ``centred``.
        optimizer: makes the optimizer from parameter groups; any torch optimizer will do.
        head_optimizer: makes that of the head, where it is another: Muon for W takes no vector.
        lr_scheduler: makes a schedule of all rates, which is stepped after every optimisation step;
            a ReduceLROnPlateau, which looks at what was logged, after Lightning's epochs.
        attention_lr: learning rate of p, W or K and Q; the optimizer's own where None.
        head_lr: learning rate of v or V, likewise; the two rates steer rho = ||v|| / ||p||.
        train: ``both``, ``attention`` (the head stays as it starts) or ``head``.
        inner_steps: most optimisation steps per ``training_step``; many make the cost of the Trainer vanish.
        head_init: as in :class:`TokenSelector`, or ``data``: the true head that the data come with.
        value_dim: of the values; ``dim`` where None.
        parametrization: ``p`` (the shared prompt merged into it), ``W`` or ``KQ`` (W = K Q').
        query: ``shared``, ``own`` (token ``own_token`` of the sequence) or ``separate`` (it comes with the data).
        query_dim: dq of separate queries; ``dim`` where None.
        own_token: the token that asks, for ``query="own"``.
        prompt: the shared prompt z, scaled to unit length; the first unit vector where None.
        rank: of K and Q; ``dim`` where None.
        num_classes: 2 is the binary head v; more is V (K, d).
        attention_init: ``zeros``, ``normal`` (standard deviation ``init_std``) or the numbers themselves.
        init_std: standard deviation of ``normal``.
        head: ``linear``, ``mlp`` or any module from pooled tokens to logits.
        hidden: width of ``mlp``.
        activation: of ``mlp``.

    Raises:
        InputError: choices that do not go together.

    Source: MMTS (joint training of p and v), TFSVM (W and K, Q).

    Example:
        >>> from lightning_maxmargin.data import PaperData
        >>> model = JointSelection(dim=2, attention_lr=1.0, head_lr=2.0)
        >>> trainer = pl.Trainer(max_steps=200, max_epochs=-1, accelerator="cpu", logger=False,
        ...     enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
        >>> trainer.fit(model, datamodule=PaperData("joint_tight"))
        >>> round(float(model.selector.direction[0] / model.selector.direction[1]), 1)  # p_mm = (4/3, 1/3)
        4.0
    """

    def __init__(
        self,
        dim: int,
        loss: str | Loss = "logistic",
        gradient: Gradient | None = None,
        optimizer: OptimizerCallable = NormalizedGD,
        head_optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        attention_lr: float | None = None,
        head_lr: float | None = None,
        train: Literal["both", "attention", "head"] = "both",
        inner_steps: int = 100,
        head_init: Init | Literal["data"] = "zeros",
        value_dim: int | None = None,
        parametrization: Literal["p", "W", "KQ"] = "W",
        query: Literal["shared", "own", "separate"] = "shared",
        query_dim: int | None = None,
        own_token: int = 0,
        prompt: Sequence[float] | None = None,
        rank: int | None = None,
        num_classes: int = 2,
        attention_init: Init = "zeros",
        init_std: float = 0.1,
        head: Literal["linear", "mlp"] | torch.nn.Module = "linear",
        hidden: int = 32,
        activation: Literal["relu", "gelu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise InputError("model.dim: the data have none; JointSelection takes keys, as of TensorData, no texts")
        # An object is no number of a config: whoever loads the checkpoint gives it again.
        objects = {"head": head, "loss": loss}
        given = [name for name, x in objects.items() if isinstance(x, torch.nn.Module | Loss)]
        self.save_hyperparameters(ignore=["optimizer", "head_optimizer", "lr_scheduler", *given])
        if parametrization == "KQ" and isinstance(attention_init, str) and attention_init == "zeros":
            raise InputError(
                "model.attention_init: zeros with KQ is a saddle that nothing leaves; use normal or give K"
            )
        expect_no_validation()
        self.head_from_data = head_init == "data"
        with double_default():
            self.selector = TokenSelector(
                dim, value_dim=value_dim, parametrization=parametrization, query=query, query_dim=query_dim,
                own_token=own_token, prompt=prompt, rank=rank, num_classes=num_classes, attention_init=attention_init,
                head_init="zeros" if head_init == "data" else head_init, init_std=init_std, head=head, hidden=hidden,
                activation=activation,
            )  # fmt: skip
        self.loss: Loss = find_loss(loss, "model.loss")
        self._optimizers = {"attention": optimizer, "head": head_optimizer or optimizer}
        self.make_scheduler, self.gradient = lr_scheduler, gradient
        self.attention_lr, self.head_lr, self.train_part, self.inner_steps = attention_lr, head_lr, train, inner_steps
        self.pause_at: int | None = None  # a callback that evaluates at this step sets it
        self._check()
        self.val_accuracy, self.test_accuracy = MeanMetric(), MeanMetric()
        self.val_selection, self.test_selection = SelectionAccuracy(), SelectionAccuracy()

    def _check(self) -> None:
        refuse_gradient(self.gradient, self.loss, self.selector)
        if self.head_from_data and not self.selector.linear:
            raise InputError("model.head_init: 'data' is for head: linear; leave it out for another head")
        if self._optimizers["head"] is not self._optimizers["attention"] and self.train_part != "both":
            raise InputError(f"model.head_optimizer: with train {self.train_part} there is one optimizer; leave it out")
        for name in ("attention_lr", "head_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise InputError(f"model.{name}: {rate}; expected a positive number, or null for the optimizer's own")
        # Made once, so that a wrong rate is refused now and not after the data are read.
        self.gradient = choose_gradient(self.gradient, self.loss, self.selector, self._make_optimizer())
        if self.inner_steps < 1:
            raise InputError(f"model.inner_steps: {self.inner_steps}; expected a positive number")

    # --- start ------------------------------------------------------------------------------------------------

    def check_data(self, data: Any) -> None:
        """Refuses data that this model cannot be trained on, before any work.

        Args:
            data: the data module.

        Raises:
            InputError: data of something else, or without the queries or the head that the model takes.
        """
        self.selector.queries(training_sequences(data, self))
        if self.head_from_data and data.head is None:
            raise InputError("model.head_init: 'data' needs data that come with a head; give numbers or zeros")

    def setup(self, stage: str) -> None:
        leave_group_at_exit()
        # Start and prompt are made in float64 so that 64-true begins at the literal numbers.
        self.selector.to(torch.float64 if self.trainer.precision == "64-true" else torch.float32)
        if self.head_from_data and stage == "fit":
            self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
            with torch.no_grad():
                self.selector.head.copy_(self.trainer.datamodule.head)  # type: ignore[attr-defined]

    @property
    def batch_dtype(self) -> torch.dtype:
        """What floating numbers of a batch are converted to, before the training thread gets it."""
        return self.selector.dtype

    @property
    def automatic_optimization(self) -> bool:
        """Whether Lightning steps: where it is to clip or accumulate gradients, which are autograd's then."""
        trainer = self._trainer
        asked = trainer is not None and (trainer.gradient_clip_val is not None or trainer.accumulate_grad_batches != 1)
        return self._automatic_optimization and asked and self.gradient != "exact"

    @automatic_optimization.setter
    def automatic_optimization(self, automatic: bool) -> None:
        self._automatic_optimization = automatic

    def make_optimizer(self, groups: Sequence[dict[str, Any]]) -> Optimizer:
        """The optimizer of parameter groups that are named ``attention`` and ``head``: one, or each one's own.

        Args:
            groups: ``params``, ``name`` and ``lr`` of each.
        """
        make, make_head = self._optimizers["attention"], self._optimizers["head"]
        if make is make_head:
            return make(groups)
        of_head = [group for group in groups if group.get("name") == "head"]
        of_attention = [group for group in groups if group.get("name") != "head"]
        return OptimizerPerGroup([make(of_attention), make_head(of_head)])

    def configure_optimizers(self) -> Any:
        return with_schedule(self._make_optimizer(), self.make_scheduler, self.automatic_optimization)

    def _make_optimizer(self) -> Optimizer:
        return self.make_optimizer(selector_groups(self.selector, self.train_part, self.attention_lr, self.head_lr))

    # --- training ---------------------------------------------------------------------------------------------

    def training_step(self, batch: Sequences, batch_idx: int) -> Tensor | None:
        batch = batch.to(self.selector.dtype)
        reduce = reduce_over(self.trainer.world_size)
        if self.automatic_optimization:
            loss = self._autograd_loss(batch, reduce)
            self._log_loss(reduce.sum(loss.detach()), batch_idx)
            # DDP averages gradients over ranks, so the sum over this rank's part is multiplied by their number.
            return loss * self.trainer.world_size
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        # One step of a minibatch: many steps on each would be another algorithm.
        inner = self.inner_steps if self.trainer.num_training_batches == 1 else 1
        steps = steps_now(self.trainer, self.pause_at, inner)
        if self.gradient == "exact":
            by_loss = groups_of_log_loss(optimizer.optimizer)
            fill = partial(set_exact_gradients, self.selector, batch, self.loss, reduce, by_loss, self.train_part)
            loss = exact_steps(self, optimizer, steps, fill, self._step_schedules)
        else:
            loss_of = partial(self._autograd_loss, batch, reduce)
            loss = autograd_steps(self, optimizer, steps, loss_of, reduce, self._step_schedules)
        self._log_loss(loss, batch_idx)
        return None

    def _log_loss(self, loss: Tensor, batch_idx: int) -> None:
        if self._loss_is_read(batch_idx):
            self.log("train/loss", loss)
            # Lightning would count batches: this puts the loss on the axis of the monitors.
            self.log("step", number_on(self.device, self.global_step))

    def _step_schedules(self) -> None:
        if self.trainer.lr_scheduler_configs:
            step_schedules(self.trainer, "step", self.global_step)

    def on_train_epoch_end(self) -> None:
        if not self.automatic_optimization:
            step_schedules(self.trainer, "epoch", self.current_epoch + 1)

    def _loss_is_read(self, batch_idx: int) -> bool:
        """Whether a logger writes now, a monitor evaluates, or an epoch or the run ends: logging two numbers takes 1 ms
        of a step's 3."""
        trainer = self.trainer
        ends = batch_idx == 0 or trainer.is_last_batch or self.global_step in (trainer.max_steps, self.pause_at)
        return ends or trainer._logger_connector.should_update_logs

    def _autograd_loss(self, batch: Sequences, reduce: Reduce) -> Tensor:
        """This process's share of the mean loss of a batch."""
        size = reduce.sum(number_on(self.device, len(batch)))
        output = self.selector(batch, "naive" if self.gradient == "naive" else "centred")
        return loss_per_sequence(self.loss, output.logits, batch.labels).sum() / size

    def sample_losses(self, batch: Sequences) -> Tensor:
        """l(Y_i f(X_i)) of each sequence, (n,): for a guard that names the one that broke.

        Args:
            batch: n sequences.
        """
        batch = batch.to(self.selector.dtype)
        return loss_per_sequence(self.loss, self.selector(batch).logits, batch.labels)

    # --- evaluation -------------------------------------------------------------------------------------------

    def forward(self, batch: Sequences) -> Output:
        """logits, attention and scores of a batch, in the weights' dtype.

        Args:
            batch: n sequences.

        Returns:
            logits (n,) or (n, K), attention (n, T), scores (n, T).
        """
        return self.selector(batch.to(self.selector.dtype))

    def validation_step(self, batch: Sequences, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_accuracy, self.val_selection)

    def test_step(self, batch: Sequences, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_accuracy, self.test_selection)

    def predict_step(self, batch: Sequences, batch_idx: int) -> dict[str, Tensor]:
        """``index``, ``logits``, ``attention`` and ``selected`` of each sequence.

        Args:
            batch: n sequences.
            batch_idx: its number, as Lightning counts.

        Returns:
            (n,), (n,) or (n, K), (n, T) and (n,).
        """
        output = self(batch)
        return {
            "index": batch.index,
            "logits": output.logits,
            "attention": output.attention,
            "selected": select(output.scores, batch.mask),
        }

    def on_validation_epoch_end(self) -> None:
        self._log_step()

    def on_test_epoch_end(self) -> None:
        self._log_step()

    def _log_step(self) -> None:
        """Puts what was evaluated at its optimisation step: Lightning would count batches."""
        self.log("step", number_on(self.device, self.global_step), sync_dist=True)

    def _evaluate(self, batch: Sequences, stage: str, accuracy: Metric, selection: Metric) -> None:
        output = self(batch)
        # One statement of right and wrong for both heads: a positive label row, no tie.
        accuracy.update((label_rows(output.logits, batch.labels) > 0).float())
        self.log(f"{stage}/accuracy", accuracy, on_step=False, on_epoch=True)
        if batch.planted is not None:
            selection.update(select(output.scores, batch.mask), batch.planted)
            self.log(f"{stage}/selection/accuracy", selection, on_step=False, on_epoch=True)
