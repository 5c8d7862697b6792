"""What a MarginMonitor shows: how both directions converge, and texts shaded by the attention as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lightning_maxmargin.callbacks.shown import Shown
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.shaded import ShadedText, ShadedTexts
from lightning_maxmargin.html_table import paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_maxmargin.figures.read import Metrics


class ShownMargin(Shown):
    """The part of a :class:`~lightning_maxmargin.callbacks.margin_monitor.MarginMonitor` that a notebook shows."""

    headlines = (
        "svm/limit", "status/attention", "status/head", "direction_gap/attention", "direction_gap/head",
        "relative_margin/attention", "relative_margin/head", "norm_ratio", "attention/selected_mass",
    )  # fmt: skip
    curve = "relative_margin/attention"

    split: str
    data: Any
    sequences: Sequences
    #: The model and the data module of the run, once it has begun.
    watched: tuple[TokenSelector, Any] | None = None

    def overview(self, metrics: Metrics) -> Figure | None:
        from lightning_maxmargin.figures.monitors import draw_convergence

        return draw_convergence(metrics)

    def panels(self, metrics: Metrics) -> dict[str, Any]:
        from lightning_maxmargin.figures.monitors import panels_of

        return panels_of(metrics)

    def body(self) -> object:
        from lightning_maxmargin.figures.diagnosis import diagnosis
        from lightning_maxmargin.figures.monitors import run_of

        return paragraph(" ".join(diagnosis(run_of(self.numbers(), self.history, self.message))))

    @torch.no_grad()
    def show(self, texts: Sequence[Sequence[str]] | None = None, samples: int = 4) -> ShadedTexts:
        """The first sequences with their tokens shaded by the attention as it is now.

        Args:
            texts: the words of every sequence; those of the data module where None.
            samples: how many are shown.

        Raises:
            InputError: nothing was trained yet, or the tokens have no words.
        """
        if self.watched is None:
            raise InputError("MarginMonitor.show: train first, with pl.Trainer(callbacks=[monitor])")
        model, source = self.watched
        if texts is None and self.data is None:
            texts = source.texts(self.split)
        if texts is None:
            raise InputError("MarginMonitor.show: these tokens are numbers; give texts, the words of each sequence")
        weight = next(model.parameters())
        data = self.sequences[: min(samples, len(texts))].to(weight.device, weight.dtype)
        attention = model(data).attention.cpu()
        found = []
        for i, (words, row) in enumerate(zip(texts, attention.tolist(), strict=False)):
            kept = range(len(row)) if data.mask is None else data.mask[i].nonzero()[:, 0].tolist()
            if len(kept) > len(words):
                raise InputError(f"MarginMonitor.show: sequence {i} has {len(kept)} tokens and {len(words)} words")
            # Words are of real tokens, in order, wherever padding stands.
            weights = [row[t] for t in kept]
            found.append(ShadedText(f"sequence {i}", list(words)[: len(kept)], weights))
        return ShadedTexts("attention as it is now", found)
