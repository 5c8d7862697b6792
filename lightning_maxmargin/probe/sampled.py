"""A probe on a sample of the sequences, and on all of them once, at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.core.ranks import Ranks
from lightning_maxmargin.keys import Value
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.own import OwnNumbers
from lightning_maxmargin.probe.selector import Probe, Snapshot


def draw_rows(count: int, samples: int | None, seed: int) -> Tensor | None:
    """Which of ``count`` sequences are measured, (samples,) in their order; None for all.

    Example:
        >>> draw_rows(10, 3, seed=0).tolist(), draw_rows(10, 10, seed=0)
        ([1, 4, 7], None)
    """
    if samples is None or samples >= count:
        return None
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples].sort().values


class SampledProbe:
    """Measures sequences drawn once, and all or fewer of them when asked; float64 copies are made when they are needed.

    Args:
        data: all sequences.
        samples: how many are drawn; all where None.
        seed: of the draw.
        train: as of :class:`Probe`, likewise ``norms`` and ``own``.
        norms: see ``train``.
        own: see ``train``.
        ranks: likewise: the processes that measure together.

    Attributes:
        rows: those drawn, None for all.
    """

    def __init__(
        self, data: Sequences, samples: int | None, seed: int, train: str, norms: Norms, own: OwnNumbers | None,
        ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self.data, self.seed = data, seed
        self.rows = draw_rows(len(data), samples, seed)
        self._settings = (train, norms, own, ranks)
        self._probe: Probe | None = None

    def measure(self, model: TokenSelector, samples: int | None) -> Snapshot:
        """A snapshot of this model, on so many of the sequences drawn, or on all where None."""
        if samples is None and self.rows is not None:
            # The sample's copy goes before that of all is made; of what it has solved the last evaluation begins.
            part, self._probe = self._probe, None
            probe = Probe(self.data, *self._settings)
            if part is not None:
                probe.start_from(part, self.rows)
            # Nothing is trained any more: a second core has no other work.
            return probe.measure(model, threads=2)
        if samples is not None and samples < len(self.data if self.rows is None else self.rows):
            # The first of the same draw; of what the sample has solved little would be near.
            return self._of(draw_rows(len(self.data), samples, self.seed)).measure(model)
        if self._probe is None:
            self._probe = self._of(self.rows)
        return self._probe.measure(model)

    def measure_last(self, model: TokenSelector, samples: int) -> Snapshot:
        """As :meth:`measure` of a sample, but for selection and head, which are those of all sequences.

        A sample cannot tell of the head: fewer sequences than there are dimensions are separable whatever their labels.
        """
        of_all: dict[str, Value] = Probe(self.data, *self._settings, once=True).measure_head(model)
        train, norms, own, ranks = self._settings
        if train == "both" and of_all.get("status/head") == "infeasible":
            # Of the limits of the attention only the strict one is defined then.
            rows = draw_rows(len(self.data), samples, self.seed)
            found = Probe(self.data if rows is None else self.data[rows], "attention", norms, own, ranks).measure(model)
        else:
            found = self.measure(model, samples)
        found.values.update(of_all)
        return found

    def _of(self, rows: Tensor | None) -> Probe:
        return Probe(self.data if rows is None else self.data[rows], *self._settings)
