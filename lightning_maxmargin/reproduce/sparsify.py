"""Attention of a trained transformer: its norm grows and its [CLS] rows grow sparse, watched by HeadMonitor."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_maxmargin.callbacks import AttentionSource, HeadMonitor
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.maps import map_panels
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.transformer import ClsTransformer
from lightning_maxmargin.reproduce.transformer_data import Tokens, digits, require_data, reviews


def sparsify(
    progress: ProgressCallback,
    data: Literal["digits", "reviews"],
    epochs: int = 40,
    every: int = 4,
    samples: int = 64,
    seed: int = 0,
    model: dict[str, Any] | None = None,
) -> Outcome:
    """Trains a small transformer in the ordinary way and evaluates every head on the way.

    Args:
        data: ``digits`` (images) or ``reviews`` (sentences).
        epochs: of training.
        every: epochs between two evaluations.
        samples: training sequences that are evaluated.
        seed: of weights, split and order.
        model: settings of :class:`ClsTransformer`.

    Returns:
        ``norm`` and ``sparsity`` at the ``/start`` and ``/end`` and their ``/ratio``, means over heads;
        ``correlation`` of the two over the evaluations; ``accuracy`` on the test split; ``relative_margin/smallest``,
        ``/median`` and ``rows_met`` at the end, means over heads; ``certified``, the share of SVMs that are.
    """
    if data not in ("digits", "reviews"):
        raise InputError(f"sparsify.data: {data!r} is none of digits, reviews")
    tokens = digits(seed) if data == "digits" else reviews(seed)
    module, monitor = train(tokens, progress, epochs, every, samples, seed, model or {})
    history = history_of(monitor)
    numbers = numbers_of(history, accuracy(module, tokens))
    panels = [
        _panel(history, "norm/attention", "weights of a head", "‖W‖, Frobenius", named=True),
        _panel(history, "attention/sparsity", "sparsity of the [CLS] rows", "‖s‖₁ / ‖s‖∞, mean"),
        _panel(history, "relative_margin/attention", "smallest margin", "of the Att-SVM's", log="y"),
        _panel(history, "relative_margin/median", "median margin over sequences", "of the Att-SVM's", log="y"),
        _panel(history, "svm/rows_met", "rows that meet the Att-SVM's margin", "share"),
        *map_panels(tokens, monitor.rows, history["epoch"]),
    ]
    length = tokens.train.tensors[0].shape[1] + 1
    note = f"{samples} training sequences of up to {length} tokens; test accuracy {numbers['accuracy']:.3f}."
    finding = (
        f"Smallest margin over the Att-SVM's at the end, mean over heads: {numbers['relative_margin/smallest']:.3g}. "
        "No paper claims 1 here: the theorem holds for fixed tokens and one trained head; in a transformer the tokens "
        "move with the layers below, and the sequence nearest to a tie decides the smallest margin."
    )
    return Outcome(numbers, panels, [note, finding, *([monitor.message] if monitor.message else [])])


def require(data: str = "digits", **_: Any) -> None:
    """Asked before any experiment runs.

    Raises:
        InputError: what these data come from is not installed.
    """
    require_data(data)


def train(
    tokens: Tokens, progress: ProgressCallback, epochs: int, every: int, samples: int, seed: int, model: dict[str, Any]
) -> tuple[ClsTransformer, HeadMonitor]:
    """A trained module and what was seen on the way; global random states stay as they were."""
    x = tokens.train.tensors[0]
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.manual_seed(seed)
        module = ClsTransformer(x.shape[2], x.shape[1], tokens.classes, **model)
        monitor = HeadMonitor(
            sources=sources_of(module), data=_evaluated(tokens, samples), samples=samples, maps=samples,
            every_n_epochs=every, budget=1.0,
            forward=lambda m, batch: m(*batch[:2]),
        )  # fmt: skip
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False,
            callbacks=[monitor, _EpochProgress(progress, epochs)], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(tokens.train, 64, shuffle=True))
    return module, monitor


def sources_of(module: ClsTransformer) -> dict[str, AttentionSource]:
    """Every layer; the last entry of a batch is the mask that knows of [CLS]."""
    found = {}
    for i in range(len(module.blocks)):
        at = f"blocks.{i}.attention"
        found[f"layer{i + 1}"] = AttentionSource(
            keys=f"{at}.k", queries=f"{at}.q", values=f"{at}.v", heads=module.heads, mask=2
        )  # fmt: skip
    return found


def accuracy(module: ClsTransformer, tokens: Tokens) -> float:
    """Share of the test split that is right."""
    x, labels, *mask = tokens.test.tensors
    module.eval()
    with torch.no_grad():
        return float((module(x, *mask).argmax(1) == labels).double().mean())


def history_of(monitor: HeadMonitor) -> dict[str, Any]:
    """``epoch`` (evaluations,), ``heads`` by name, and each measured key as (evaluations, heads)."""
    heads = list(monitor.rows[0][1])
    keys = {key.split("/", 2)[2] for key in monitor.history[0] if key.startswith("layer1/")}
    seen: dict[str, Any] = {
        key: np.array([[row[f"{head}/{key}"] for head in heads] for row in monitor.history]) for key in keys
    }
    epochs = [0 if row["step"] == 0 else row["epoch"] + 1 for row in monitor.history]
    return seen | {"epoch": np.array(epochs), "heads": heads}


def numbers_of(history: dict[str, Any], right: float) -> dict[str, float]:
    """What the claims are held against."""
    from scipy.stats import spearmanr

    norm, sparse = (history[key].astype(float).mean(1) for key in ("norm/attention", "attention/sparsity"))
    last = {
        key: float(np.nanmean(history[key][-1].astype(float))) for key in history if "margin" in key or "rows" in key
    }
    return {
        **{f"{name}/{at}": float(x[i]) for name, x in (("norm", norm), ("sparsity", sparse))
           for at, i in (("start", 0), ("end", -1))},
        "norm/ratio": float(norm[-1] / norm[0]),
        "sparsity/ratio": float(sparse[-1] / sparse[0]),
        "correlation": float(spearmanr(norm, sparse).statistic),
        "accuracy": right,
        "relative_margin/smallest": last["relative_margin/attention"],
        "relative_margin/median": last["relative_margin/median"],
        "rows_met/start": float(np.nanmean(history["svm/rows_met"][0].astype(float))),
        "rows_met/end": last["svm/rows_met"],
        "certified": float((history["status/attention"] == "certified").mean()),
    }  # fmt: skip


class _EpochProgress(Callback):
    def __init__(self, progress: ProgressCallback, epochs: int) -> None:
        self.progress, self.epochs = progress, epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress((trainer.current_epoch + 1) / self.epochs)


def _evaluated(tokens: Tokens, samples: int) -> tuple[Tensor | None, ...]:
    """Tokens, mask or None, and the mask with [CLS] before it."""
    x, _, *masks = (t[:samples] for t in tokens.train.tensors)
    mask = masks[0] if masks else None
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return x, mask, torch.cat([real.new_ones(len(real), 1), real], 1)


def _panel(
    history: dict[str, Any], key: str, title: str, ylabel: str, log: Literal["", "y"] = "", named: bool = False
) -> Panel:
    """One line a head; the colours are named in one panel of all."""
    columns = history[key].astype(float).T
    names = [name.replace("/", " ") if named else "" for name in history["heads"]]
    lines = [Line(history["epoch"], y, name) for name, y in zip(names, columns, strict=True)]
    return Panel(title, "epoch", ylabel, lines, log)
