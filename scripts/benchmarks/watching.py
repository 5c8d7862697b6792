"""What watching a run costs: the monitor's share of it before the last evaluation, and the last evaluation.

    .venv/bin/python scripts/benchmarks/watching.py [--quick] [--keep] [--cases planted frozen heads]
        [--accelerator gpu]

With the monitor's defaults. ``run`` is the time of ``Trainer.fit``, the share that of all evaluations in it: what
``monitor/seconds`` and the last evaluation (``last``) come to. ``of`` is how
many sequences the last evaluation was of. ``slower`` is the median
step while an evaluation is under way over the median of the others. Ten epochs over 10,000 documents and a BERT of
MiniLM's size take an hour on one core; ``--quick`` has a tenth of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import statistics
import time
import warnings

import common
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_maxmargin import AttentionSource, HeadMonitor, JointSelection, MarginMonitor
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data.base import SequenceData

COLUMNS = ["case", "monitor", "run", "evaluations", "monitor's share", "asked", "last", "of", "slower"]
EPOCHS = 10


@dataclass
class Case:
    """What is trained, for how long, and by what it is watched."""

    name: str
    module: Callable[[], pl.LightningModule]
    data: Any
    monitor: Callable[[], Monitor]
    length: dict[str, int]


class FrozenData(SequenceData):
    """Random float16 keys (n, 128, 384), one token of each a little along the direction of its label.

    Args:
        n: documents.
    """

    def __init__(self, n: int) -> None:
        super().__init__(batch_size=64)
        self.n = n

    def load(self) -> dict[str, Sequences]:
        g = torch.Generator().manual_seed(0)
        labels = torch.where(torch.rand(self.n, generator=g) < 0.5, 1.0, -1.0)
        keys = torch.empty(self.n, 128, 384, dtype=torch.float16)
        mark, sign = (nn.functional.normalize(torch.randn(384, generator=g), dim=0) for _ in range(2))
        for i, label in enumerate(labels.tolist()):
            tokens = nn.functional.normalize(torch.randn(128, 384, generator=g), dim=1)
            tokens[int(torch.randint(128, (1,), generator=g))] += 0.5 * mark + 0.1 * label * sign
            keys[i] = tokens.half()
        return {"train": Sequences(keys, labels)}


class Classifier(pl.LightningModule):
    """A BERT of MiniLM's size at random weights, with a linear head on its first token, all of it trained."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        size = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        self.encoder = BertModel(size, add_pooling_layer=False)
        self.head = nn.Linear(384, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


def frozen(n: int) -> Case:
    """Documents of frozen features."""

    def module() -> pl.LightningModule:
        return JointSelection(dim=384, parametrization="p", attention_lr=0.1, head_lr=0.1)

    length = {"max_epochs": EPOCHS, "max_steps": -1}
    return Case(f"{n:,} x 128 x 384 frozen, batches of 64", module, FrozenData(n), MarginMonitor, length)


def planted(steps: int) -> Case:
    """The shipped config of planted sentences, its model and data made by hand."""
    from lightning_maxmargin.text.planted import PlantedText

    def module() -> pl.LightningModule:
        return JointSelection(dim=384, gradient="exact", attention_lr=0.2, head_lr=0.03)

    length = {"max_epochs": -1, "max_steps": steps}
    monitor = lambda: MarginMonitor(per_decade=4)  # noqa: E731
    return Case(f"text/planted, {steps} steps", module, PlantedText(T=8, train=3000, test=1000), monitor, length)


def heads(documents: int, pieces: int) -> Case:
    """All 72 attention heads of a BERT of MiniLM's size that is trained."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (documents, pieces), generator=g)
    ids[:, 0] = 101
    data = TensorDataset(ids, torch.randint(2, (documents,), generator=g))
    at = "encoder.encoder.layer.{}.attention.self."
    sources = {
        f"layer{i}": AttentionSource(keys=at.format(i) + "key", queries=at.format(i) + "query", heads=12)
        for i in range(6)
    }
    monitor = lambda: HeadMonitor(sources, DataLoader(data, 32), forward=lambda m, b: m(b[0]))  # noqa: E731
    length = {"max_epochs": EPOCHS, "max_steps": -1}
    name = f"72 heads of a BERT like MiniLM, {documents:,} documents of {pieces} pieces, 128 watched"
    return Case(name, Classifier, DataLoader(data, 32, shuffle=True), monitor, length)


class Steps(pl.Callback):
    """Seconds of every step, by whether an evaluation was under way."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.seconds: dict[bool, list[float]] = {False: [], True: []}

    def on_train_batch_start(self, *_: Any) -> None:
        self._start, self._watched = time.perf_counter(), self.monitor._pending is not None

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds[self._watched].append(time.perf_counter() - self._start)

    @property
    def slower(self) -> str:
        """How many times as long a watched step takes, of five or more."""
        if min(map(len, self.seconds.values())) < 5:
            return "-"
        return f"{statistics.median(self.seconds[True]) / statistics.median(self.seconds[False]):.2f}"


def measure(case: Case, accelerator: str) -> list[str]:
    """One line of the table."""
    torch.manual_seed(0)
    monitor = case.monitor()
    steps = Steps(monitor)
    # First of the two, so that its steps end before the monitor's work at their end.
    trainer = pl.Trainer(
        **case.length, accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, callbacks=[steps, monitor],
    )  # fmt: skip
    module, by_name = case.module(), "train_dataloaders"
    if isinstance(case.data, SequenceData):
        by_name = "datamodule"
        case.data.splits  # noqa: B018  (loaded before anything is timed)
    last, finish = 0.0, monitor._finish

    def timed(*given: Any) -> None:
        nonlocal last
        last -= time.process_time()
        finish(*given)
        last += time.process_time()

    monitor._finish = timed  # type: ignore[method-assign]
    start = time.process_time()
    trainer.fit(module, **{by_name: case.data})
    run = time.process_time() - start
    return [
        case.name, type(monitor).__name__, common.time_text([run]), f"{len(monitor.history) - 1} + 1",
        f"{(monitor.seconds + last) / run:.1%}", "<= 5 %", common.time_text([last]), _measured(monitor), steps.slower,
    ]  # fmt: skip


def _measured(monitor: Monitor) -> str:
    """Of how many sequences the last evaluation was."""
    if isinstance(monitor, HeadMonitor):
        selected = [] if monitor.heads is None else list(monitor.heads.selected.values())
        return f"{len(selected[0]):,}" if selected else "-"
    assert isinstance(monitor, MarginMonitor)
    return "-" if monitor.snapshot is None else f"{len(monitor.snapshot.selected):,}"


def main() -> None:
    """Run the benchmark."""
    parser: argparse.ArgumentParser = common.flags(str(__doc__))
    parser.add_argument("--cases", nargs="*", default=["planted", "frozen", "heads"], help="of the three")
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    quick = options.quick
    made = {
        "planted": lambda: planted(200),
        "frozen": lambda: frozen(2_000 if quick else 10_000),
        "heads": lambda: heads(*((640, 16) if quick else (1_280, 64))),
    }
    rows = [measure(made[name](), options.accelerator) for name in options.cases]
    notes = "Keys of the frozen case are random. CPU seconds."
    title = "Watching" if options.accelerator == "cpu" else "Watching on a GPU"
    common.show(title, COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
