"""The LightningModule that trains many instances as one tensor."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable
from torch import Tensor
from torch.optim import Optimizer

from lightning_maxmargin.core.ensemble import Compile, EnsembleState, Update
from lightning_maxmargin.core.losses import Loss, MarginLoss, find_loss
from lightning_maxmargin.core.stack import pack
from lightning_maxmargin.core.updates import UpdateRule, update_rule
from lightning_maxmargin.errors import InputError, NonFiniteError, check_seed
from lightning_maxmargin.modules.cyclic_options import CyclicOptions, listed
from lightning_maxmargin.modules.ensemble_state import restore, saved
from lightning_maxmargin.modules.schedules import step_schedules, with_schedule
from lightning_maxmargin.modules.training_data import training_sequences
from lightning_maxmargin.noise import expect_no_validation
from lightning_maxmargin.probe.ensemble import EnsembleResult, measure
from lightning_maxmargin.reduce import gather, leave_group_at_exit, number_on, reduce_over
from lightning_maxmargin.schedule import steps_now


class Ensemble(pl.LightningModule):
    """Trains B instances of f(X) = v' X' softmax(X W z) at once, by exact directions, and measures each.

    An instance is what ``instance`` of the data says (one problem without it). Where the data have queries W is
    trained, else p. A list of rates or losses is assigned cyclically: instance b takes entry b modulo its length, so
    with ``RandomInstances(repeats=k)`` and lists of k every problem is trained in k ways. Several processes share the
    instances.

    Args:
        dim: d, of the keys.
        value_dim: of the values; d where None.
        query_dim: of the queries; None trains p.
        num_classes: 2, the head being binary.
        loss: logistic, exponential, correlation, or a margin loss of one's own (a registered name, or ``class_path``
            in a config), or a list.
        update: ``normalized`` (lr g / ||g||), ``accelerated`` (dual acceleration), any other rule of
            ``lightning_maxmargin.core.updates`` by its name, or a rule of one's own (``class_path`` in a config).
        train: ``both``, ``attention`` or ``head``.
        attention_lr: a number or a list.
        head_lr: a number or a list; with ``normalized`` updates rho tends to head_lr / attention_lr.
        attention_init: ``zeros``, or ``normal`` draws of each instance's own.
        head_init: likewise, or ``data``: the heads that the data come with.
        init_std: of the draws.
        seed: of the draws.
        inner_steps: most optimisation steps per ``training_step``.
        compile: whether steps are those of C++ compiled on this machine: ``auto`` where that can be, see
            :class:`~lightning_maxmargin.core.ensemble.EnsembleState`.
        lr_scheduler: makes a schedule of an optimizer of rate 1, by whose rate those of all instances are multiplied;
            it is stepped after every optimisation step.

    Raises:
        InputError: choices that do not exist or do not go together, or more processes than instances.

    Source: MMTS and TFSVM, the experiments over many random seeds.

    Example:
        >>> from lightning_maxmargin.data import RandomInstances
        >>> model = Ensemble(dim=10, train="attention", head_init="data")
        >>> trainer = pl.Trainer(max_steps=300, max_epochs=-1, accelerator="cpu", logger=False,
        ...     enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
        >>> trainer.fit(model, datamodule=RandomInstances(B=20))
        >>> model.measure().shares()["settled"] > 0.8
        True
    """

    state: EnsembleState  # made by setup, for the instances of this process

    def __init__(
        self,
        dim: int,
        value_dim: int | None = None,
        query_dim: int | None = None,
        num_classes: int = 2,
        loss: list[str | Loss] | str | Loss = "logistic",
        update: Update = "accelerated",
        train: Literal["both", "attention", "head"] = "both",
        attention_lr: float | list[float] = 1.0,
        head_lr: float | list[float] = 1.0,
        attention_init: Literal["zeros", "normal"] = "zeros",
        head_init: Literal["zeros", "normal", "data"] = "zeros",
        init_std: float = 1.0,
        seed: int = 0,
        inner_steps: int = 100,
        compile: Compile = "auto",
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # An object is no number of a config: whoever loads the checkpoint gives it again.
        given = {"update": isinstance(update, UpdateRule), "loss": any(isinstance(x, Loss) for x in listed(loss))}
        self.save_hyperparameters(ignore=["lr_scheduler", *(name for name, is_object in given.items() if is_object)])
        self.make_scheduler = lr_scheduler
        self.rule = update_rule(update, "model.update:")
        losses = [find_loss(x, "model.loss", MarginLoss) for x in listed(loss)]
        self._options = CyclicOptions(attention_lr=listed(attention_lr), head_lr=listed(head_lr), loss=losses)
        self.automatic_optimization = False
        # The weights of all processes do not fit one another, so they are no parameters; Lightning wants one to exist.
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.pause_at: int | None = None
        #: What the rates of the steps that are counted and not yet made are multiplied by.
        self.due: list[float] = []
        self._threads = 0
        self._check()
        expect_no_validation()

    def _check(self) -> None:
        h = self.hparams
        if h["num_classes"] != 2:
            raise InputError(
                f"model: Ensemble has binary heads, the data {h['num_classes']} classes; use JointSelection"
            )
        check_seed(h["seed"], "model.seed")
        if h["inner_steps"] < 1:
            raise InputError(f"model.inner_steps: {h['inner_steps']}; expected a positive number")
        self._options.check()
        if not 0 < h["init_std"] < math.inf:
            raise InputError(f"model.init_std: {h['init_std']}; expected a positive number")

    def check_data(self, data: Any) -> None:
        """Refuses data of something else, without the heads of ``head_init: data``, or of fewer instances than rates.

        Args:
            data: the data module.

        Raises:
            InputError: it is so.
        """
        instance = training_sequences(data, self).instance
        count = 1 if instance is None else len(instance.unique())
        self._options.check_count(count)
        if self.hparams["head_init"] == "data" and data.head is None:
            raise InputError("model.head_init: 'data' needs data that come with heads; use zeros or normal")

    # --- start ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        leave_group_at_exit()
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None or data.sequences("train") is None:
            raise InputError("model: Ensemble takes its instances from a data module of this package")
        self.check_data(data)
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise InputError(f"trainer.precision: {self.trainer.precision}; an Ensemble trains in 32-true or 64-true")
        whole = pack(data.sequences("train"))
        self.count, world, rank = len(whole), self.trainer.world_size, self.trainer.global_rank
        if world > self.count:
            raise InputError(f"trainer.devices: {world} processes for {self.count} instances; use fewer")
        self.at = torch.arange(self.count).tensor_split(world)[rank]
        self.stack = whole.part(self.at)
        self._make_state(data.head)

    def _make_state(self, heads: Tensor | None) -> None:
        h, stack = self.hparams, self.stack
        dtype = torch.float64 if self.trainer.precision == "64-true" else torch.float32
        batch = stack.batch()
        for name in ("attention_lr", "head_lr"):
            rate = max(self._options.entries(name))
            if rate > torch.finfo(dtype).max ** 0.5:  # a norm is of squares
                raise InputError(f"model.{name}: {rate} is too large for {dtype}; give a smaller one")
        d, dv = stack.keys.shape[-1], stack.values.shape[-1]
        shape = (d,) if stack.queries is None else (d, stack.queries.shape[-1])
        start = self._start(h["attention_init"], shape, 0)
        head = self._start(h["head_init"], (dv,), 1)
        if h["head_init"] == "data":
            assert heads is not None
            head = heads.reshape(-1, dv).expand(self.count, dv)[self.at]
        self.state = EnsembleState(
            batch.to(dtype, self.trainer.strategy.root_device),
            attention=start.movedim(0, -1), head=head.movedim(0, -1), train=h["train"],
            attention_lr=self._rates("attention_lr"), head_lr=self._rates("head_lr"),
            loss=self._options.of("loss", self.at.tolist()), update=self.rule, compile=h["compile"],
        )  # fmt: skip

    def _start(self, kind: str, shape: tuple[int, ...], which: int) -> Tensor:
        if kind != "normal":
            return torch.zeros(len(self.at), *shape, dtype=torch.float64)
        # All are drawn on every process: the draws of an instance do not depend on how many share the work.
        g = torch.Generator().manual_seed(2 * int(self.hparams["seed"]) + which)
        drawn = torch.randn(self.count, *shape, generator=g, dtype=torch.float64)
        return float(self.hparams["init_std"]) * drawn[self.at]

    def _rates(self, name: str) -> Tensor:
        return torch.tensor(self._options.of(name, self.at.tolist()), dtype=torch.float64)

    def assigned(self) -> dict[str, list[Any]]:
        """Rates and losses of every instance, of all processes, where they differ."""
        return self._options.assigned(self.count)

    def configure_optimizers(self) -> Any:
        return with_schedule(EnsembleSteps(self), self.make_scheduler)

    def on_fit_start(self) -> None:
        # With another process on the box 6,000 steps of 1,000 instances took 72 s on two threads, 11 s on one.
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def teardown(self, stage: str) -> None:
        # Also after an interrupt, where on_fit_end is not called.
        if stage == "fit" and self._threads:
            torch.set_num_threads(self._threads)

    # --- training ---------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        try:
            for _ in range(steps_now(self.trainer, self.pause_at, int(self.hparams["inner_steps"]))):
                optimizer.step()
                if self.trainer.lr_scheduler_configs:
                    step_schedules(self.trainer, "step", self.global_step)
        finally:
            # Also after an interrupt: a checkpoint of it has as many steps as Lightning counted.
            scales, self.due = self.due, []
            self.state.run(len(scales), rate_scales=scales)
        loss = reduce_over(self.trainer.world_size).sum(self.state.loss_now.double().sum()) / self.count
        self.log("train/loss", loss.float())
        self.log("step", number_on(self.device, self.global_step))

    def on_train_epoch_end(self) -> None:
        step_schedules(self.trainer, "epoch", self.current_epoch + 1)

    def measure(self) -> EnsembleResult:
        """Every instance against its own SVMs, of all processes; all of them must call it.

        Raises:
            NonFiniteError: the weights of an instance are not finite.
            RuntimeError: measuring failed on one of the processes.
        """
        outcome: tuple[Exception | None, EnsembleResult | None] = (None, None)
        try:
            outcome = (None, self.measure_part(self.weights()))
        # Not raised here: the other processes wait for this one's part.
        except NonFiniteError as error:
            outcome = (NonFiniteError(str(error)), None)
        except Exception as error:
            outcome = (RuntimeError(f"Ensemble.measure: {type(error).__name__}: {error}"), None)
        parts = gather(outcome)
        failed = next((error for error, _ in parts if error is not None), None)
        if failed is not None:
            raise failed
        return EnsembleResult.cat([part for _, part in parts if part is not None])

    def weights(self) -> EnsembleState:
        """A copy of the state with the weights of this process's instances as they are now, and nothing else of it.

        Raises:
            NonFiniteError: the weights of an instance are not finite.
        """
        self._stay_finite()
        found = copy.copy(self.state)
        found.attention, found.head, found.remembered = found.attention.clone(), found.head.clone(), {}
        return found

    def measure_part(self, weights: EnsembleState) -> EnsembleResult:
        """The instances of this process with these weights against their own SVMs.

        Args:
            weights: of these instances.
        """
        stack = self.stack
        found = measure(weights, stack.keys, stack.labels, stack.values, stack.queries, stack.mask)
        found.state = None
        return found

    def _stay_finite(self) -> None:
        bad = ~(self.state.attention.flatten(0, -2).isfinite().all(0) & self.state.head.isfinite().all(0))
        if bad.any():
            names = ", ".join(map(str, self.at[bad.cpu()].tolist()[:10]))
            where = f"at step {self.state.steps} (instances {names})"
            raise NonFiniteError(
                f"the weights of an ensemble are not finite {where}: check these, or lower the learning rate"
            )

    # --- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        parts = gather({name: x.cpu() for name, x in saved(self.state).items()})
        checkpoint["ensemble"] = {name: torch.cat([p[name] for p in parts], -1) for name in parts[0]}
        checkpoint["ensemble_steps"] = self.state.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "state"):
            # Outside of a fit there are no instances to put the weights into.
            return
        restore(self.state, checkpoint, self.at, self.count)


class EnsembleSteps(Optimizer):
    """One step of all instances, made at the end of its ``training_step``: an optimizer, for Lightning to count it."""

    def __init__(self, module: Ensemble) -> None:
        super().__init__([module.anchor], {"lr": 1.0})
        self._module = module

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._module.due.append(float(self.param_groups[0]["lr"]))
