"""Trains a token selector on the hidden states of a pretrained encoder, and its top layers if asked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from lightning_maxmargin.core import TokenSelector
from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.sharding import (
    average_gradients,
    evaluate_without_inference_mode,
    is_sharded,
    shard_encoder,
    share_start,
    whole_weights,
)
from lightning_maxmargin.modules.text_checkpoint import made_of, model_of, refuse_another, without_frozen
from lightning_maxmargin.modules.text_optimizer import cooldown, text_groups
from lightning_maxmargin.modules.text_options import check_options
from lightning_maxmargin.noise import expect_in_eval
from lightning_maxmargin.probe.text import TextUnits
from lightning_maxmargin.reduce import leave_group_at_exit, number_on, reduce_over
from lightning_maxmargin.text.batches import Batch
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification, SelectionOutput, pooled_units
from lightning_maxmargin.text.rationales import plausibility_metrics, word_scores
from lightning_maxmargin.text.saving import build_model, load_start
from lightning_maxmargin.text.tuning import add_lora, encoder_parameters, train_top_layers


class TextSelection(pl.LightningModule):
    """``logits = V X' softmax(X p)`` over hidden states X of :class:`~lightning_maxmargin.text.TextData`.

    The encoder is frozen and its hidden states are read from the cache: an epoch of a thousand reviews takes a second.
    With ``finetune_layers`` or ``lora_rank`` the last ``finetune_epochs`` train the encoder as well, from the frozen
    solution on. Everything else of training is Lightning's: accumulation, clipping, precision, early stopping.

    Args:
        parametrization: ``p``, ``W`` or ``KQ`` (W = K Q' of this ``rank``).
        query: ``shared``, or ``cls``: the text's own first token asks (W or KQ).
        rank: of K and Q.
        per_class: one selector a class, instead of one for all.
        token_scale: length of a token; the effective rate of p.
        lr: of attention and head.
        attention_decay: decoupled weight decay of p; more of it attends to more words.
        head_decay: of the head.
        label_smoothing: of the cross entropy.
        class_weights: ``none``, or ``balanced``: each class counts alike, however rare.
        dropout: of the entries of a token.
        train: ``both``, or ``head``: keys and p stay as ``init_from`` has them.
        init_from: a directory of an earlier selector, where attention (and the head, of the same labels) begin.
        finetune_layers: top layers of the encoder that are trained too.
        lora_rank: trains adapters of this rank in all linear maps of the encoder instead (needs peft).
        finetune_epochs: the last epochs, in which the encoder is trained.
        finetune_lr: of the encoder.
        cooldown: share of the steps, the last ones, over which rates fall linearly to zero; 0 keeps them constant. The
            encoder's falls over this share of its own epochs.
        optimizer: any torch optimizer; rates and decays are those above.
        lr_scheduler: any torch schedule instead of ``cooldown``.

    Raises:
        InputError: choices that do not go together.

    Example:
        >>> module = TextSelection(attention_decay=4.0)
        >>> module.hparams.attention_decay
        4.0
    """

    class_weight: Tensor | None

    def __init__(
        self,
        parametrization: Literal["p", "W", "KQ"] = "p",
        query: Literal["shared", "cls"] = "shared",
        rank: int | None = None,
        per_class: bool = False,
        token_scale: float = 8.0,
        lr: float = 1e-2,
        attention_decay: float = 2.0,
        head_decay: float = 0.3,
        label_smoothing: float = 0.1,
        class_weights: Literal["none", "balanced"] = "none",
        dropout: float = 0.0,
        train: Literal["both", "head"] = "both",
        init_from: str | None = None,
        finetune_layers: int = 0,
        lora_rank: int = 0,
        finetune_epochs: int = 2,
        finetune_lr: float = 5e-5,
        cooldown: float = 0.5,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.options: Any = self.hparams
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        self.tunes_encoder = bool(finetune_layers or lora_rank)
        self.strict_loading = False  # a frozen encoder is not in the checkpoint
        self.model: MaxMarginForSequenceClassification | None = None
        # A buffer, since a copy to a device waits for it; not kept, because the labels say it.
        self.register_buffer("class_weight", None, persistent=False)
        self.val_accuracy, self.test_accuracy = MeanMetric(), MeanMetric()
        self.plausibility = plausibility_metrics()
        check_options(self.options, makes_schedule=lr_scheduler is not None)

    # --- the model --------------------------------------------------------------------------------------------

    def check_data(self, data: Any) -> None:
        """Refuses data that are no documents, before any work.

        Args:
            data: the data module.

        Raises:
            InputError: it is so.
        """
        if not hasattr(data, "labelled"):
            raise InputError(f"data: {type(data).__name__} has no documents; {type(self).__name__} takes TextData")

    def setup(self, stage: str) -> None:
        leave_group_at_exit()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_data(data)
        if self.model is None and data.names:
            self.set_model(build_model(data.spec, data.encoder, data.names, self._shape()))
            if self.options.init_from:
                assert self.model is not None
                load_start(self.model, Path(self.options.init_from))
        if stage == "fit" and self.model is not None:
            expect_in_eval(sum(not part.training for part in self.model.encoder.modules()))
        if stage == "fit" and self.options.class_weights == "balanced":
            self.class_weight = balanced(data.labelled("train").labels, len(data.names))

    def _shape(self) -> dict[str, Any]:
        names = ("parametrization", "query", "rank", "per_class", "token_scale")
        return {name: self.options[name] for name in names}

    def set_model(self, model: MaxMarginForSequenceClassification) -> None:
        """Takes this model and freezes of it what is not trained.

        Args:
            model: of the same labels as the data.
        """
        model.requires_grad_(True)
        model.encoder.requires_grad_(False)
        if self.options.train == "head":
            for selector in model.parts:
                for parameter in selector.attention_parameters.values():
                    parameter.requires_grad_(False)
        if self.options.lora_rank:
            add_lora(model.encoder, self.options.lora_rank)
        elif self.options.finetune_layers:
            train_top_layers(model.encoder, self.options.finetune_layers)
        self.model = model

    def configure_model(self) -> None:
        """Under ``ModelParallelStrategy`` the encoder's weights lie in parts; p, W and v are whole everywhere."""
        if self.device_mesh is not None and self.model is not None and not is_sharded(self.model):
            share_start(self.model, self.device_mesh.device_type)
            shard_encoder(self.model.encoder, self.device_mesh)
            evaluate_without_inference_mode(self.trainer)

    def gather_model(self) -> None:
        """Puts a whole model in the place of a sharded one, on all processes, which all must call it."""
        if self.model is None or not is_sharded(self.model):
            return
        weights, device = whole_weights(self.model), self.device
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.set_model(build_model(data.spec, data.encoder, data.names, self._shape()))
        self.model.load_state_dict(weights)
        self.model.to(device)  # type: ignore[arg-type]

    @property
    def tuning(self) -> bool:
        """Whether the encoder is trained now, or was."""
        if not self.tunes_encoder or self._trainer is None:
            return self.tunes_encoder
        last = self.trainer.max_epochs or 0
        return self.trainer.state.fn != "fit" or self.current_epoch >= last - self.options.finetune_epochs

    def forward(self, batch: Batch) -> SelectionOutput:
        """Logits, selection and evidence of a batch; hidden states from the cache where the encoder is as it came.

        Args:
            batch: b documents, as :class:`TextData` makes them.

        Returns:
            logits (b, K), selection (b, u), or (b, K, u) of one selector a class, and evidence (b, u, K) of u units.
        """
        assert self.model is not None
        if "keys" in batch and not self.tuning:
            keys, values, mask = _pooled(batch)
            return self.model.select(keys, values, mask, batch["keys"][:, 0], self._dropout)
        output = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], unit_ids=batch.get("unit_ids"),
            unit_mask=batch.get("unit_mask"),
        )  # fmt: skip
        return output

    def units(self, batch: Batch, selector: TokenSelector) -> TextUnits:
        """Keys, queries, scores and attention of a batch from the cache, on the CPU: what the monitor measures.

        Args:
            batch: of documents.
            selector: whose scores; a copy of the model's, while training goes on.
        """
        assert self.model is not None
        keys, values, mask = _pooled(batch)
        data = self.model.sequences(keys, values, mask, batch["keys"][:, 0])
        scores = selector.scores(data)
        found = (data.keys, mask, data.queries, scores, masked_softmax(scores, mask))
        return TextUnits(*(None if x is None else x.cpu() for x in found))  # type: ignore[arg-type]

    @property
    def _dropout(self) -> float:
        return float(self.options.dropout) if self.training else 0.0

    # --- training ---------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        h = self.options
        optimizer = self.make_optimizer(text_groups(self.model, h))
        if self.make_scheduler is not None:
            schedule = self.make_scheduler(optimizer)
        elif h.cooldown:
            schedule = cooldown(optimizer, self.trainer, h.cooldown, h.finetune_epochs)
        else:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._losses(batch, self(batch)).sum()
        reduce = reduce_over(self.trainer.world_size)
        # DDP averages gradients over processes, whose parts of a batch may differ by a document.
        size = reduce.sum(number_on(self.device, len(batch["index"])))
        self.log("train/loss", reduce.sum(loss.detach()) / size)
        return (loss + self._untouched()) * self.trainer.world_size / size

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Where the encoder is sharded nothing averages the gradients of what is not.

        Args:
            optimizer: about to step.
        """
        assert self.model is not None
        if is_sharded(self.model):
            average_gradients(self.model)
        if not self.tuning:
            # Of _untouched: a gradient of 0 would still be a step of weight decay.
            for parameter in encoder_parameters(self.model.encoder):
                parameter.grad = None

    def _untouched(self) -> Tensor | float:
        """Zero, by way of weights whose turn has not come: DDP waits for the gradient of every weight in every step."""
        if self.tuning or not isinstance(self.trainer.strategy, DDPStrategy):
            return 0.0
        assert self.model is not None
        return sum((0.0 * parameter.sum() for parameter in encoder_parameters(self.model.encoder)), 0.0)

    def sample_losses(self, batch: Batch) -> Tensor:
        """The loss of every document of the batch, (b,).

        Args:
            batch: b documents.
        """
        return self._losses(batch, self(batch))

    def _losses(self, batch: Batch, output: SelectionOutput) -> Tensor:
        """Cross entropy of each document, (b,)."""
        assert output.logits is not None
        weight = None if self.class_weight is None else self.class_weight.to(output.logits)
        smoothing = self.options.label_smoothing if self.training else 0.0
        return cross_entropy(
            output.logits.float(), batch["labels"], weight=weight, label_smoothing=smoothing, reduction="none"
        )

    # --- evaluation -------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self(batch)
        self._accuracy(self.val_accuracy, batch, output)
        self.log("val/accuracy", self.val_accuracy, on_step=False, on_epoch=True)
        loss = self._losses(batch, output).mean()
        self.log("val/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["index"]), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> SelectionOutput:
        output = self(batch)
        self._accuracy(self.test_accuracy, batch, output)
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)
        split = self.trainer.datamodule.splits["test"]  # type: ignore[attr-defined]
        scores = word_scores(split, batch["index"].tolist(), self.weights(batch, output))
        if scores is not None:
            self.plausibility.update(*scores)
        return output

    def on_test_epoch_end(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.splits["test"].documents.rationales is not None:
            # Computed on all processes: each holds a part of the documents.
            self.log_dict({f"rationale/{name}": float(x) for name, x in self.plausibility.compute().items()})
            # After compute the count is this process's own again.
            own = torch.tensor(float(self.plausibility["auprc"].documents), device=self.device)  # type: ignore[arg-type]
            self.log("rationale/documents", reduce_over(self.trainer.world_size).sum(own))
        self.plausibility.reset()

    @staticmethod
    def weights(batch: Batch, output: SelectionOutput) -> list[Any]:
        """Attention on each document's units, (u,) float64 arrays; of the predicted label's selector where there are
        several.

        Args:
            batch: b documents.
            output: what :meth:`forward` said of them.
        """
        assert output.selection is not None
        assert output.logits is not None
        selection = output.selection
        if selection.ndim == 3:
            selection = selection[torch.arange(len(selection)), output.logits.argmax(1)]
        units = batch["unit_ids"].max(1).values + 1 if "unit_ids" in batch else None
        inside = (
            batch["mask"] if units is None else torch.arange(selection.shape[1], device=units.device) < units[:, None]
        )
        return [row[on].double().cpu().numpy() for row, on in zip(selection, inside, strict=True)]

    @staticmethod
    def _accuracy(metric: MeanMetric, batch: Batch, output: SelectionOutput) -> None:
        assert output.logits is not None
        metric.update((output.logits.argmax(1) == batch["labels"]).float())

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``index``, ``logits``, ``selection``, ``evidence`` and ``scores``.

        Args:
            batch: b documents.
            batch_idx: its number, as Lightning counts.

        Returns:
            Tensors of b rows: (b,), (b, K), (b, u), (b, u, K) and (b, u) of u units.
        """
        output = self(batch)
        return {"index": batch["index"], **{k: v.cpu() for k, v in output.items()}}

    # --- checkpoints ------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained and the model's configuration; a frozen encoder is read where it came from.

        Args:
            checkpoint: Lightning's dictionary, which is written to.
        """
        assert self.model is not None
        checkpoint["state_dict"] = without_frozen(checkpoint["state_dict"], self.model.encoder)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["text"] = {"names": data.names, **made_of(data, self._shape())}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The model of the checkpoint, of whatever data these are; by ``load_from_checkpoint`` without any.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            InputError: another encoder, layers, units or labels.
        """
        kept = checkpoint.get("text")
        if kept is None:
            raise InputError("ckpt_path: it is no checkpoint of a TextSelection")
        if self._trainer is None:
            self.set_model(model_of(kept))
            # Lightning lists what a checkpoint lacks.
            checkpoint["state_dict"] = self.state_dict() | checkpoint["state_dict"]
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        refuse_another(kept, data, self._shape())
        data.names = kept["names"]
        if self.model is None:
            self.set_model(build_model(replace(data.spec), data.encoder, data.names, self._shape()))


def _pooled(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask of the units of a batch from the cache."""
    return pooled_units(
        batch["keys"], batch["values"], batch["mask"], batch.get("unit_ids"), batch.get("unit_mask")
    )  # fmt: skip


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights n / (K n_k) of the classes, (K,).

    Example:
        >>> balanced(torch.tensor([0, 0, 0, 1]), 2).tolist()
        [0.6666666865348816, 2.0]
    """
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    return len(labels) / (classes * counts.float())
