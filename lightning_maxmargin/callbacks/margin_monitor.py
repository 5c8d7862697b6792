"""Watches both margins and directions of a TokenSelector converge to their SVMs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from lightning_maxmargin.callbacks.diagnosis import diagnosis
from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.head_monitor import HeadMonitor
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.callbacks.shown_margin import ShownMargin
from lightning_maxmargin.callbacks.watch import Forward
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.per_group import parts_of
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.own import OwnNumbers
from lightning_maxmargin.probe.sampled import SampledProbe
from lightning_maxmargin.probe.selector import Snapshot, head_vector
from lightning_maxmargin.probe.sources import AttentionSource
from lightning_maxmargin.probe.visible import QueryToken
from lightning_maxmargin.reduce import measuring_ranks

#: Of torch's own optimizers: Muon's steps are near the polar factors of an average of gradients.
TORCH_NORMS: dict[type, str] = {torch.optim.Muon: "spectral"}
#: Those of Adam's kind have the margin of l_inf only while gradients are far above their epsilon, as exact directions
#: stay: relative l_inf and l2 margins of the head .95 and .88 with these, .50 and .84 with true magnitudes (Adam, 5,000
#: steps, n = 8, T = 5, d = 16).
NORMS_OF_EXACT: dict[type, str] = dict.fromkeys((torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam), "linf")
#: Sequences of an evaluation, but for one of everything at the end.
SAMPLES = 500
#: What selection and head of all sequences take: .08 s for 3,000 of 8 x 384, .14 for 2,000 of 128 x 384.
SECONDS_PER_NUMBER_OF_ALL, SECONDS_PER_CUBE = 8e-10, 1e-9
#: The model, of how many sequences it is measured, all where None, and whether it is the last of the run.
Snapped = tuple[TokenSelector, int | None, bool]


class MarginMonitor(ShownMargin, Monitor):
    """Logs, at geometrically spaced steps, the margins of attention and head against their SVMs.

    Of a module of this package: attention and label margin and the direction gaps; the keys are listed in
    ``lightning_maxmargin.keys``. Each process measures its own sequences in float64, all receive the numbers (or the
    error), and all log the same keys; one that is undefined is left out of the log and null in ``last``. Attention
    and head are each measured in the norm whose margin their optimizer maximises (its ``margin_norm``). In another norm
    than l2, and with numbers of your own, the first process measures all. The cost is two passes over the samples
    per evaluation, plus the SVMs whenever a selected token has changed; it stays within ``budget``.

    Any other module is watched by :class:`HeadMonitor`; ``MarginMonitor(sources=...)`` makes one, as it did before
    there were two.

    Args:
        per_decade: evaluations per factor of ten in steps.
        split: which split of the data module to measure.
        data: the sequences themselves, for use without one of this package's data modules.
        sources: as of :class:`HeadMonitor`, which is what one then gets; likewise ``forward`` and ``maps``.
        forward: see ``sources``.
        samples: sequences of an evaluation, drawn once by the data's seed: margins and SVMs are then of these; the last
            is of all where the budget covers it. None is 500, or the 128 of :class:`HeadMonitor`.
        maps: see ``sources``.
        every_n_epochs: evaluates after so many epochs instead of the geometric steps.
        metrics: numbers of your own by key, ``metric(model, data, output, selected)``, measured at every evaluation;
            :func:`~lightning_maxmargin.keys.register_key` gives one a meaning in the report.
        limits: limit problems of your own by name, ``limit(data, selected)``, a solution with ``status``,
            ``direction`` and ``margin``: ``mine`` logs ``direction_gap/mine``, and ``relative_margin/mine`` where the
            solution has ``achieved(direction)``.
        budget: share of the run's time, as of :class:`~lightning_maxmargin.callbacks.monitor.Monitor`.
        background: likewise.
        query_token: see ``sources``, likewise ``layers``.
        layers: see ``sources``.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step``.
        snapshot: the latest :class:`Snapshot` (on the processes that measure).
        paths: (step, p or W, v) of every evaluation of a two-dimensional problem.
        message: what the numbers mean, where they need a message.

    Raises:
        InputError: there is neither ``data`` nor a data module of this package; the module has no TokenSelector.

    Example:
        >>> MarginMonitor(per_decade=5).last
        {}
    """

    sources_of_keys = ("selector",)
    of_samples = "Selection and head are of all sequences, the attention's SVMs of"

    def __init__(
        self,
        per_decade: int = 10,
        split: str = "train",
        data: Any = None,
        sources: AttentionSource | Mapping[str, AttentionSource] | Literal["auto"] | None = None,
        forward: Forward | None = None,
        samples: int | None = None,
        maps: int = 4,
        every_n_epochs: int | None = None,
        metrics: dict[str, Callable[..., Any]] | None = None,
        limits: dict[str, Callable[..., Any]] | None = None,
        budget: float | None = None,
        background: bool | None = None,
        query_token: QueryToken = "auto",
        layers: str | None = None,
    ) -> None:
        if sources is not None:
            if type(self) is not MarginMonitor:
                raise InputError(f"{type(self).__name__}: sources are for HeadMonitor; derive from it")
            if metrics or limits:
                raise InputError(
                    "MarginMonitor: metrics and limits are of a TokenSelector; with sources leave them out"
                )
            # Not by __new__, whose signature would hide this one from the command line.
            self.__class__ = HeadMonitor  # type: ignore[assignment]
            HeadMonitor.__init__(
                self, sources, data, forward, 128 if samples is None else samples, maps, per_decade, every_n_epochs,  # type: ignore[arg-type]
                budget, background, None, query_token, layers,
            )  # fmt: skip
            return
        if query_token != "auto" or layers is not None:
            raise InputError("monitor.query_token, monitor.layers: of attention heads; give monitor.sources: auto")
        super().__init__(per_decade, every_n_epochs, budget, SAMPLES if samples is None else samples, background)
        self.split, self.data = split, data
        self.own = OwnNumbers(metrics, limits) if metrics or limits else None
        self.paths: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.snapshot: Snapshot | None = None
        self.sequences: Sequences
        self._probes: SampledProbe

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model, norms = (
            _selector_of(pl_module),
            norms_of(trainer.optimizers, getattr(pl_module, "gradient", None) == "exact"),
        )
        self.sequences = self._find(trainer)
        self.watched = model, trainer.datamodule  # type: ignore[attr-defined]
        mine = model.direction.shape, head_vector(model).shape
        if trainer.ckpt_path and any((direction.shape, head.shape) != mine for _, direction, head in self.paths):
            raise InputError("ckpt_path: its MarginMonitor has paths of other shapes; use another checkpoint")
        # Another norm and numbers of the user's own need all sequences on one process.
        self.everywhere = trainer.world_size > 1 and norms.is_euclidean and self.own is None
        if self.everywhere or trainer.is_global_zero:
            seed = getattr(trainer.datamodule, "seed", 0)  # type: ignore[attr-defined]
            train = getattr(pl_module, "train_part", "both")
            ranks = measuring_ranks(trainer) if self.everywhere else None
            self._probes = SampledProbe(self.sequences, self.samples, seed, train, norms, self.own, ranks)
            if not self.paths:
                self._remember(trainer.global_step, model.direction, head_vector(model))
        super().on_train_start(trainer, pl_module)

    def size(self) -> Size:
        count, numbers = len(self.sequences), self.sequences.keys.numel()
        besides = SECONDS_PER_NUMBER_OF_ALL * numbers + SECONDS_PER_CUBE * self.sequences.values.shape[2] ** 3
        if self._probes.rows is None:
            return Size(numbers, numbers, f"all {count:,} sequences", count, besides)
        kept = len(self._probes.rows)
        which = f"{kept:,} of {count:,} sequences, drawn with seed {self._probes.seed}"
        which += "; all at the end if the budget covers it"
        return Size(numbers, numbers // count * kept, which, kept, besides)

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> Snapped:
        model = _selector_of(pl_module)
        model = copy.deepcopy(model) if self.in_background and samples is not None else model
        return model, samples, self.at_end

    def measure(self, step: int, snapshot: Snapped, readings: None) -> Measured:
        model, samples, at_end = snapshot
        count = len(self.sequences)
        if at_end and samples is not None and samples < count:
            found = self._probes.measure_last(model, samples)
        else:
            found = self._probes.measure(model, samples)
        found.values["monitor/samples"] = float(count if samples is None else min(samples, count))
        return Measured(dict(found.values), found)

    def join(self, parts: list[Snapshot]) -> Measured:
        return Measured(dict(parts[0].values), parts[0])  # all have found the same

    def keep(self, step: int, details: Snapshot) -> None:
        self.snapshot = details
        self._remember(step, details.direction, details.head)

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        return diagnosis(self.history, pl_module)

    def forget(self) -> None:
        super().forget()
        self.paths, self.snapshot = [], None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "paths": self.paths}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        paths = state_dict.get("paths")
        if not isinstance(paths, list) or not all(map(_is_point, paths)):
            raise InputError("ckpt_path: its MarginMonitor has no paths; use another checkpoint")
        self.paths = paths

    def _remember(self, step: int, direction: torch.Tensor, head: torch.Tensor) -> None:
        """Paths in two dimensions, for the figure."""
        if direction.shape[0] == 2:
            # Cloned: .double().cpu() of a float64 tensor on the CPU is the live weight itself.
            self.paths.append((step, direction.detach().double().cpu().clone(), head.detach().double().cpu().clone()))

    def _find(self, trainer: pl.Trainer) -> Sequences:
        if self.data is not None:
            if not isinstance(self.data, Sequences):
                raise InputError(f"monitor.data: expected Sequences, got {type(self.data).__name__}; leave it out")
            return self.data
        source = getattr(trainer.datamodule, "sequences", None)  # type: ignore[attr-defined]
        found = source(self.split) if source is not None else None
        if found is None:
            raise InputError(
                f"monitor.split: no {self.split!r} sequences here; MarginMonitor takes a split of a data module of "
                "this package, or data="
            )
        return found


def _is_point(point: Any) -> bool:
    """Whether a checkpoint's point of the paths is one: a step, and p or W, and v."""
    if not isinstance(point, tuple | list) or len(point) != 3:
        return False
    step, *weights = point
    return isinstance(step, int) and all(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in weights)


def norms_of(optimizers: Sequence[Any], exact: bool = False) -> Norms:
    """Whose margins the optimizers of the groups ``attention`` and ``head`` maximise; l2 where they do not say.

    Args:
        optimizers: of the run.
        exact: whether they are given exact directions, whose length does not go to 0.

    Raises:
        InputError: a ``margin_norm`` is none.
    """
    from lightning_maxmargin.svm.norms.registry import check_norm

    of_torch = TORCH_NORMS | NORMS_OF_EXACT if exact else TORCH_NORMS
    found: dict[str, str | float] = {}
    for optimizer in (part for given in optimizers for part in parts_of(given)):
        try:
            norm = check_norm(getattr(optimizer, "margin_norm", of_torch.get(type(optimizer), "l2")), matrix=True)
        except InputError as error:
            raise InputError(f"{type(optimizer).__name__}.margin_norm: {error}") from error
        found |= {str(group.get("name")): norm for group in optimizer.param_groups}
    only = next(iter(found.values())) if len(set(found.values())) == 1 else "l2"
    return Norms(found.get("attention", only), found.get("head", only))


def _selector_of(pl_module: pl.LightningModule) -> TokenSelector:
    found = getattr(pl_module, "selector", None)
    if not isinstance(found, TokenSelector):
        raise InputError(
            f"MarginMonitor: {type(pl_module).__name__} has no attribute 'selector' that is a TokenSelector; "
            "of any other module, name its attention: HeadMonitor(AttentionSource(...), data)"
        )
    return found
