"""Watches every attention head of any LightningModule converge, or not, to its own Att-SVM."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info

from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.evaluation_schedule import note
from lightning_maxmargin.callbacks.head_looks import HeadLooks
from lightning_maxmargin.callbacks.heads_in_words import heads_in_words
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.callbacks.shown_heads import ShownHeads
from lightning_maxmargin.callbacks.watch import Forward, Gathered, HeadWatch
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value
from lightning_maxmargin.keys_of_heads import medians_of_layers
from lightning_maxmargin.probe.attention import HeadSnapshot
from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.discover import Discovery
from lightning_maxmargin.probe.sources import AttentionSource
from lightning_maxmargin.probe.visible import QueryToken
from lightning_maxmargin.reduce import measuring_ranks

#: Heads up to which each is a curve of its own.
MOST_SERIES = 16


class HeadMonitor(ShownHeads, Monitor):
    """Logs, at geometrically spaced steps, every attention head of any LightningModule against its own Att-SVM.

    For each head: the margin of one query's attention, its share of the SVM's, the norm and the sparsity, as
    ``head0/KEY`` (``LAYER/head0/KEY`` with several layers); the keys are listed in :mod:`lightning_maxmargin.keys`.
    The processes share the heads out and measure in float64, and all receive the numbers. The cost is one pass over the
    samples per evaluation, in the training thread, and an SVM per head, solved every time, since a head's inputs change
    as well.

    Args:
        sources: ``auto`` finds the attention layers of any module by what its forward pass computes, and says which it
            leaves out and why; else the attention layer of the module, or several by name.
        data: a batch, or a loader or list of batches, the same on all processes; None is the first ``samples`` of the
            trainer's validation data, else of its training data.
        forward: ``forward(module, batch)``; None follows from the module: its own ``forward``, by names where a batch
            is a dictionary, or the model call of its training step.
        samples: how many to evaluate, the first of the data; a loader may be endless, so the last evaluation is of
            these as well, or of as many of them as the budget covers.
        maps: of how many samples to keep the attention rows of every evaluation.
        per_decade: evaluations per factor of ten in steps.
        every_n_epochs: evaluates after so many epochs instead of the geometric steps.
        budget: share of the run's time, as of :class:`~lightning_maxmargin.callbacks.monitor.Monitor`; under 1 the
            weights at the start are evaluated as soon as it covers that.
        background: likewise.
        each_head: whether loggers get the numbers of every head. None is so for at most 16 heads: 72 would be 860
            curves. :attr:`last` has all.
        query_token: whose attention is watched, with ``auto`` sources: a position; ``auto``, the first token where
            attention is bidirectional and the last real one where it is causal; ``all``, every position that sees two
            tokens or more, of which as many are taken, evenly, as ``samples`` has.
        layers: with ``auto`` sources: only those of this name, a pattern of its end (``layer.[0-3].*``) or a part.

    Where there are several layers, or not every head is logged, loggers get the medians of each layer, as
    ``LAYER/median/KEY``. W&B gets a picture of all heads at the end, ``heads/relative_margin``.

    Attributes:
        found: the layers of ``auto`` (:class:`~lightning_maxmargin.probe.discover.Discovery`); ``str()`` is a table.
        last: the latest numbers by key.
        history: all of them, with ``step`` and ``epoch``.
        heads: the latest :class:`HeadSnapshot` (on the first process).
        rows: (step, {head: (maps, T)}) of every evaluation, and under a budget of the geometric steps between them,
            for a pass without SVMs costs little (on the first process); not so with ``query_token="all"``, whose rows
            are of positions.
        message: how many heads select, stay soft, are sinks, or have no certified SVM.

    Raises:
        InputError: no data; a source's name is wrong or it is not what a source may be; no attention is found.

    Example:
        >>> source = AttentionSource(keys="attn.k", queries="attn.q", heads=2)
        >>> HeadMonitor(source, torch.zeros(4, 5, 8)).last, HeadMonitor("auto").found
        ({}, None)
    """

    sources_of_keys = ("head", "heads")
    #: Of heads at random weights: one on 128 samples of 32 tokens of 384 took .5 to 1.9 s, on 50 of 16 .04 to .15.
    seconds_per_number = 8e-7

    def __init__(
        self,
        sources: AttentionSource | Mapping[str, AttentionSource] | Literal["auto"] = "auto",
        data: Any = None,
        forward: Forward | None = None,
        samples: int = 128,
        maps: int = 4,
        per_decade: int = 10,
        every_n_epochs: int | None = None,
        budget: float | None = None,
        background: bool | None = None,
        each_head: bool | None = None,
        query_token: QueryToken = "auto",
        layers: str | None = None,
    ) -> None:
        super().__init__(per_decade, every_n_epochs, budget, samples, background)
        self.sources = _checked(sources)
        self.query_token, self.layers = query_token, layers
        if (query_token != "auto" or layers is not None) and self.sources != "auto":
            raise InputError("HeadMonitor: query_token and layers belong to sources='auto'; a source has its own")
        if not isinstance(query_token, int) and query_token not in ("auto", "all"):
            raise InputError(f"HeadMonitor.query_token: {query_token!r}; expected a position, 'auto' or 'all'")
        self.found: Discovery | None = None
        self.data, self.forward, self.maps, self.each_head = data, forward, maps, each_head
        self.samples: int = samples
        self.rows: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.heads: HeadSnapshot | None = None
        self._watch: HeadWatch
        self._looks: HeadLooks | None = None

    from_start = True
    of_heads = True

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        # Checkpoints of when one class was both monitors.
        return "MarginMonitor"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.everywhere = trainer.world_size > 1
        ranks = measuring_ranks(trainer)
        self._watch = HeadWatch(
            trainer,
            pl_module,
            self.sources,
            self.data,
            self.forward,
            self.samples,
            ranks,
            self.query_token,
            self.layers,
        )
        self.found = self._watch.found
        if self.found is not None:
            # What is watched is the user's to judge, so this is heard by default; the table is monitor.found.
            rank_zero_info(f"HeadMonitor: {self.found.in_short()}")
            note(f"HeadMonitor: {len(self.found.sources)} attention layers watched\n{self.found}")
        super().on_train_start(trainer, pl_module)
        # An evaluation at every step of the schedule leaves nothing to look at in between.
        # Of all positions an evaluation takes others than a pass of the first samples, so rows would not be comparable.
        of_steps = self.every_n_epochs is None and self._clock.share < 1 and self.query_token != "all"
        self._looks = HeadLooks(self._watch, self.maps, self._clock, self.per_decade) if of_steps else None
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps what heads look at, where no evaluation does so at this step."""
        step = trainer.global_step
        if self._looks is None or not self._looks.is_due(trainer) or self._evaluates(step):
            return
        found = self._looks.look(trainer, pl_module)
        if found and trainer.is_global_zero:
            self._add(step, found)

    def _evaluates(self, step: int) -> bool:
        """Whether an evaluation of this step is made, or under way."""
        pending = self._pending is not None and self._pending.step == step
        return pending or bool(self.history and self.history[-1]["step"] == step)

    def _add(self, step: int, attention: dict[str, torch.Tensor]) -> None:
        """In the order of steps: an evaluation in the background is done later than the looks behind it."""
        kept = {head: rows[: self.maps].clone() for head, rows in attention.items()}
        self.rows = sorted([row for row in self.rows if row[0] != step] + [(step, kept)], key=lambda row: row[0])

    def size(self) -> Size:
        heads, numbers = sum(self._watch.heads.values()), self._watch.numbers
        return Size(numbers, numbers, f"{heads} heads on the first {self._watch.samples:,} samples", self._watch.count)

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> int | None:
        return samples

    def gather(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Gathered:
        return self._watch.gather(trainer, pl_module)

    def measure(self, step: int, snapshot: int | None, readings: dict[str, Reading | str]) -> Measured:
        first = {name: x if isinstance(x, str) else x.first(snapshot) for name, x in readings.items()}
        return self.join([self._watch.measure(first)])

    def join(self, parts: list[HeadSnapshot | None]) -> Measured:
        heads = parts[0]  # the first process has them all, the others none
        if heads is None:
            return Measured({})
        statuses: list[str] = [solution.status for solution in heads.solutions.values()]
        counts: dict[str, Value] = {f"heads/{s}": float(statuses.count(s)) for s in ("certified", "infeasible")}
        counts["monitor/samples"] = float(max(map(len, heads.attention.values()), default=0))
        return Measured(heads.values | counts, heads)

    def keep(self, step: int, details: HeadSnapshot) -> None:
        self.heads = details
        self._add(step, details.attention)

    def logged(self, numbers: dict[str, float]) -> dict[str, float]:
        of_each = sum(self._watch.heads.values()) <= MOST_SERIES if self.each_head is None else self.each_head
        medians = medians_of_layers(numbers)
        if not of_each:
            return medians
        return {**numbers, **medians} if len(self._watch.heads) > 1 else numbers

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, WandbLogger) and (picture := self._picture()) is not None:
                logger.log_image("heads/relative_margin", [picture], step=trainer.global_step)

    def _picture(self) -> Any:
        """All heads at the end, as an image; None where nothing was measured."""
        from PIL import Image

        from lightning_maxmargin.figures.heads import draw_heads

        figure = draw_heads(self.last)
        if figure is None:
            return None
        with io.BytesIO() as file:
            figure.savefig(file, format="png")
            return Image.open(file).convert("RGB")

    def marks(self, trainer: pl.Trainer) -> dict[str, Any]:
        return {"epoch": trainer.current_epoch}

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        return heads_in_words(self.last)

    def forget(self) -> None:
        super().forget()
        self.rows, self.heads = [], None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        rows = state_dict.get("rows", [])
        if not isinstance(rows, list) or not all(map(_is_map, rows)):
            raise InputError("ckpt_path: its HeadMonitor has no attention rows; use another checkpoint")
        self.rows = rows


def _checked(sources: Any) -> dict[str, AttentionSource] | Literal["auto"]:
    if isinstance(sources, AttentionSource):
        return {"": sources}
    if sources == "auto":
        return "auto"
    if not isinstance(sources, Mapping) or not sources or not all(map(_is_source, sources.values())):
        raise InputError(f"HeadMonitor.sources: {sources!r}; expected 'auto', an AttentionSource, or several by name")
    return dict(sources)


def _is_source(x: Any) -> bool:
    return isinstance(x, AttentionSource)


def _is_map(row: Any) -> bool:
    """Whether a checkpoint's row is one: a step, and the attention by head."""
    if not isinstance(row, tuple | list) or len(row) != 2:
        return False
    step, heads = row
    return (
        isinstance(step, int) and isinstance(heads, dict) and all(isinstance(x, torch.Tensor) for x in heads.values())
    )
