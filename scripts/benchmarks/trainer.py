"""Steps per second of the shipped configs through ``maxmargin fit``, beside a plain loop over the same steps.

    .venv/bin/python scripts/benchmarks/trainer.py [--quick] [--keep]

Callbacks, CSV, W&B (offline) and checkpoints at their default intervals; the time is that of ``Trainer.fit``. The plain
loop computes the same exact directions and takes the same optimizer steps, and does nothing else. One thread, a minute.

The second table trains on batches of 64 sequences of 128 tokens of 384 (float32) through a Trainer with a guard, a CSV
and a checkpoint an epoch, beside the loop that a researcher would write: autograd through softmax, plain steps.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import copy
import functools
import io
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import common
import pytorch_lightning as pl
import torch
from rich.progress import track

from lightning_maxmargin.callbacks import FiniteGuard
from lightning_maxmargin.cli import main as maxmargin
from lightning_maxmargin.core import MarginLoss, Sequences, exact_directions
from lightning_maxmargin.data import SequenceData
from lightning_maxmargin.modules.joint import JointSelection

COLUMNS = ["config", "steps", "plain loop", "maxmargin fit", "of it", "monitor's share", "runs", "target"]
CONFIGS = ("joint/tight", "joint/relaxed", "joint/random", "attention/multi", "attention/visual1")
ROOT = Path(__file__).parents[2]
MINIBATCH_COLUMNS = [
    "step of 64 x 128 x 384",
    "batches made by",
    "milliseconds",
    "start",
    "of a plain loop",
    "runs",
    "target",
]
#: An epoch of 2,048 sequences has 32 steps; of 512, in which Lightning's own work between epochs counts, it had 8.
WARM_UP, BATCH, COUNT = 20, 64, 2_048


class InMemory(SequenceData):
    """Sequences of the benchmark's own."""

    def __init__(self, data: Sequences, **options: Any) -> None:
        super().__init__(**options)
        self.data = data

    def load(self) -> dict[str, Sequences]:
        return {"train": self.data}


class Steps(pl.Callback):
    """CPU seconds before the first step, and of a step behind the first :data:`WARM_UP`, of all threads."""

    def __init__(self) -> None:
        self.begin, self.start, self.since = time.process_time(), 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.start = self.start or time.process_time() - self.begin
        if trainer.global_step == WARM_UP:
            self.since = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seconds = (time.process_time() - self.since) / (trainer.global_step - WARM_UP)


def minibatch_loop(data: Sequences, steps: int) -> float:
    """CPU seconds of a step without Lightning."""
    p, v = (torch.zeros(data.keys.shape[2], requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([p, v], lr=0.01)
    done, since = 0, 0.0
    while done < steps:
        for rows in torch.randperm(len(data)).split(BATCH)[: steps - done]:
            keys, labels = data.keys.index_select(0, rows), data.labels[rows]
            pooled = torch.bmm((keys @ p).softmax(1)[:, None], keys)[:, 0]
            optimizer.zero_grad()
            torch.nn.functional.softplus(-labels * (pooled @ v)).mean().backward()
            optimizer.step()
            done += 1
            since = time.process_time() if done == WARM_UP else since
    return (time.process_time() - since) / (steps - WARM_UP)


def minibatch_fit(data: Sequences, steps: int, gradient: Any, **options: Any) -> Steps:
    """The same steps with our gradients, through a Trainer."""
    clock = Steps()
    d = data.keys.shape[2]
    model = JointSelection(d, parametrization="p", attention_lr=0.01, head_lr=0.01, gradient=gradient)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[clock, FiniteGuard()], logger=pl.loggers.CSVLogger(folder),
        )  # fmt: skip
        trainer.fit(model, datamodule=InMemory(data, batch_size=BATCH, **options))
    return clock


def minibatches(runs: int, steps: int) -> list[list[str]]:
    """The rows of the second table; loop and fit in turn."""
    g = torch.Generator().manual_seed(0)
    data = Sequences(torch.randn(COUNT, 128, 384, generator=g), torch.randint(2, (COUNT,), generator=g).float() * 2 - 1)
    ways: dict[tuple[str, str], dict[str, Any]] = {
        ("exact", "the training thread"): {"prefetch": 0}, ("exact", "a thread"): {},
        ("centred", "the training thread"): {"prefetch": 0}, ("centred", "a thread"): {},
    }  # fmt: skip
    fits: dict[tuple[str, str], list[Steps]] = {way: [] for way in ways}
    loops = []
    for _ in range(runs):
        loops.append(minibatch_loop(data, steps))
        for way, options in ways.items():
            fits[way].append(minibatch_fit(data, steps, way[0], **options))
    rows = [["plain loop", "the training thread", f"{1e3 * statistics.median(loops):.1f}", "", "1", str(runs), ""]]
    for (gradient, maker), found in fits.items():
        ratio = statistics.median(loop / fit.seconds for loop, fit in zip(loops, found, strict=True))
        own, start = (statistics.median(x) for x in ([f.seconds for f in found], [f.start for f in found]))
        cells = [f"{1e3 * own:.1f}", f"{start:.2f} s", f"{ratio:.2f}", str(runs), ">= .83"]
        rows.append([f"Trainer, {gradient}", maker, *cells])
    return rows


class Timed:
    """Takes the place of ``Trainer.fit``: times it, and keeps an untrained copy of the model for the plain loop."""

    def __init__(self) -> None:
        self.fit = pl.Trainer.fit

    def __enter__(self) -> Timed:
        # LightningCLI reads the arguments of fit off its signature, so the wrapper has to keep it.
        @functools.wraps(self.fit)
        def fit(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            self._call(trainer, *args, **kwargs)

        pl.Trainer.fit = fit  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        pl.Trainer.fit = self.fit  # type: ignore[method-assign]

    def _call(self, trainer: pl.Trainer, model: Any, *args: Any, **kwargs: Any) -> None:
        self.model = copy.deepcopy(model)
        self.trainer = trainer
        self.seconds, _ = common.clock(lambda: self.fit(trainer, model, *args, **kwargs))
        self.data = kwargs["datamodule"]


def plain(model: JointSelection, data: Any, steps: int) -> float:
    """Seconds of the same optimisation without Lightning."""
    selector = model.selector.double()
    if model.head_from_data:
        with torch.no_grad():
            selector.head.copy_(data.head)
    batch = data.sequences("train").to(torch.float64)
    optimizer = model.configure_optimizers()
    loss = model.loss
    assert isinstance(loss, MarginLoss)
    by_loss = getattr(optimizer, "gradient_scale", "log_loss") == "log_loss"

    def loop() -> None:
        for _ in range(steps):
            full = Sequences(batch.keys, batch.labels, batch.values, selector.queries(batch), batch.mask, batch.index)
            d = exact_directions(full, selector.scores(batch), selector.head, loss)
            attention, head = d.attention, d.head
            if by_loss:
                loss_now = d.log_loss.nan_to_num(0.0)
                attention = attention * (d.log_attention - loss_now).exp()
                head = head * (d.log_head - loss_now).exp()
            if model.train_part != "head":
                selector.set_attention_gradient(-attention)
            if model.train_part != "attention":
                selector.head.grad = -head
            optimizer.step()

    with torch.no_grad():
        return common.clock(loop)[0]


def measure(name: str, runs: int, steps: int | None) -> list[str]:
    """One line of the table."""
    ratios, fits, loops, shares = [], [], [], []
    done = 0
    for at in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder, Timed() as timed, contextlib.redirect_stdout(io.StringIO()):
            argv = ["fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--run_dir", f"{folder}/run"]
            argv += ["--report", "false"] + ([] if steps is None else ["--trainer.max_steps", str(steps)])
            with contextlib.redirect_stderr(io.StringIO()):
                assert maxmargin(argv) == 0
        done = timed.trainer.global_step
        loop = plain(timed.model, timed.data, done)
        if at:
            fits.append(done / timed.seconds)
            loops.append(done / loop)
            ratios.append(loop / timed.seconds)
            monitor = timed.trainer.callback_metrics.get("monitor/seconds", torch.tensor(0.0))
            shares.append(float(monitor) / timed.seconds)
    each = [f"{statistics.median(x):,.0f}/s" for x in (loops, fits)]
    return [
        name,
        f"{done:,}",
        *each,
        f"{statistics.median(ratios):.2f}",
        f"{statistics.median(shares):.2f}",
        str(runs),
        ">= .85",
    ]


def main() -> None:
    """Run the benchmark."""
    parser = common.flags(str(__doc__))
    parser.add_argument("--configs", nargs="*", default=list(CONFIGS), help="of the shipped ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs, steps = (1, 1000) if options.quick else (5, None)
    rows = [measure(name, runs, steps) for name in track(options.configs, "training")]
    notes = (
        "Medians after a warm-up run, fit and loop in turn. CPU seconds of one thread, W&B's own process not counted."
    )
    common.show("Trainer overhead", COLUMNS, rows, notes, options.keep)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    notes = (
        "Medians of CPU seconds of all threads, loop and fits in turn. Start: what passes before the end of the first "
        "step, of which the most is the search for equal keys."
    )
    rows = minibatches(*((1, 60) if options.quick else (7, 120)))
    common.show("Minibatches", MINIBATCH_COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
