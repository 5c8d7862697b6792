"""Watches what a text selector selects, within a share of the run's time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch

from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.core import TokenSelector
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.shaded import ShadedText, ShadedTexts
from lightning_maxmargin.keys import Value
from lightning_maxmargin.probe.capture import evaluating
from lightning_maxmargin.probe.sampled import draw_rows
from lightning_maxmargin.probe.text import SelectionSums, TextSVM, TextUnits
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.cache import cache_folder
from lightning_maxmargin.text.hidden import batches_by_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_maxmargin.figures.read import Metrics

#: With padding, in one part: 25 MB of float64 keys of d = 384.
PIECES_AT_ONCE = 8_192


class TextSnapshot(NamedTuple):
    """What is measured: the selector, whether it alone has an Att-SVM with keys on disk, and of which documents."""

    selector: TokenSelector
    has_svm: bool
    texts: Sequence[int]


class TextMonitor(Monitor):
    """Logs after an epoch the median lead, entropy and Att-SVM margin of training documents, and at the end of all.

    Args:
        samples: documents of an evaluation, drawn once by the data's seed; the end measures all where the budget
            covers it.
        budget: share of the run's time, as of :class:`~lightning_maxmargin.callbacks.monitor.Monitor`.
        final: whether to measure all documents at the end, where the budget covers it, and not the sample.
        background: whether training goes on meanwhile, likewise.

    Raises:
        InputError: a number is out of range.
    """

    sources_of_keys = ("text", "selector")
    headlines = (
        "margin/median_lead", "attention/entropy", "relative_margin/attention", "status/attention", "norm/attention",
        "monitor/samples",
    )  # fmt: skip
    curve = "margin/median_lead"

    def __init__(
        self, samples: int = 500, budget: float | None = None, final: bool = True, background: bool | None = None
    ) -> None:
        super().__init__(every_n_epochs=1, budget=budget, samples=samples, background=background)
        self.final = final
        self._module: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._module, self._seed = pl_module, data.seed
        self._split: Split = data.labelled("train")
        self._folder = cache_folder(data.cache_dir)
        self._counts: dict[str, Value] = {
            f"text/{name}": float(sum(part.counts[name] for part in data.splits.values()))
            for name in ("truncated", "empty")
        }
        self._sample, self._all = self._drawn(self.samples), self._drawn(None if self.final else self.samples)
        super().on_train_start(trainer, pl_module)

    def size(self) -> Size:
        d = self._module.model.parts[0].dim
        whole, measured = (d * sum(map(self._split.unit_count, texts)) for texts in (self._all, self._sample))
        which = f"{len(self._sample):,} of {len(self._split):,} documents, drawn with seed {self._seed}"
        which += "; all at the end if the budget covers it" if self.final else ""
        return Size(whole, measured, which, len(self._sample))

    def _drawn(self, samples: int | None) -> Sequence[int]:
        drawn = draw_rows(len(self._split), samples, self._seed)
        return range(len(self._split)) if drawn is None else drawn.tolist()

    # --- what is measured -------------------------------------------------------------------------------------

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> TextSnapshot:
        model: Any = pl_module.model
        # One selector a class has as many SVMs; of a trained encoder the keys are not on disk.
        has_svm = not (model.config.per_class or getattr(pl_module, "tuning", False))
        texts = self._all if samples is None else self._drawn(samples)
        return TextSnapshot(copy.deepcopy(model.parts[0]), has_svm, texts)

    @torch.no_grad()
    def measure(self, step: int, snapshot: TextSnapshot, readings: None) -> Measured:
        selector, texts = snapshot.selector, snapshot.texts
        values: dict[str, Value] = dict(self._counts)
        values["norm/attention"] = norm = float(selector.direction.norm())
        values["norm/head"] = float(selector.head.norm())
        values["monitor/samples"] = float(len(texts))
        if not snapshot.has_svm:
            return Measured(values)
        longest = max(map(self._split.unit_count, texts), default=0)
        direction = selector.direction.detach()
        # Both in one pass: reading and scaling all keys costs more than a product with them.
        numbers = sum(map(self._split.unit_count, texts)) * direction.shape[0]
        sums, svm = SelectionSums(norm), TextSVM(numbers, longest, self._folder)
        for part in self._units(selector, texts):
            sums.update(part.scores, part.attention, part.mask)
            svm.update(part)
        return Measured(values | sums.compute() | svm.compute(direction))

    def _units(self, selector: TokenSelector, texts: Sequence[int]) -> Iterator[TextUnits]:
        for rows in batches_by_length(self._split.pieces, texts, PIECES_AT_ONCE):
            batch = self._split[torch.tensor(rows)]
            yield self._module.units({name: x.to(self._module.device) for name, x in batch.items()}, selector)

    # --- in a notebook ----------------------------------------------------------------------------------------

    def overview(self, metrics: Metrics) -> Figure | None:
        from lightning_maxmargin.figures.monitors import draw_key

        return draw_key(metrics, self.curve) if metrics.has(self.curve) else None

    @torch.no_grad()
    def show(self, samples: int = 4) -> ShadedTexts:
        """The first watched documents with their words shaded: the heavier the darker, orange against the label.

        Args:
            samples: how many are shown.

        Raises:
            InputError: nothing was trained yet.
        """
        from lightning_maxmargin.text.selector import readings

        if self._module is None:
            raise InputError("TextMonitor.show: train first, with pl.Trainer(callbacks=[monitor])")
        texts = list(self._sample[:samples])
        batch = {name: x.to(self._module.device) for name, x in self._split[torch.tensor(texts)].items()}
        with evaluating(self._module):
            output = {name: x.cpu() for name, x in self._module(batch).items() if isinstance(x, torch.Tensor)}
        found = []
        all_read = readings(self._module.model, self._split, texts, output, batch["mask"].cpu())
        for i, read in zip(texts, all_read, strict=True):
            label = "" if self._split.documents.labels is None else f", labelled {self._split.documents.labels[i]}"
            numbers = [word.weight for word in read.words], [word.evidence for word in read.words]
            title = f"{i}: {read.label} ({read.probability:.2f}){label}"
            found.append(ShadedText(title, [word.text for word in read.words], *numbers))
        return ShadedTexts("training documents as they are read now", found)
