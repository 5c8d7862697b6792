"""Steps per second of the shipped configs through ``maxmargin fit``, beside a plain loop over the same steps.

    .venv/bin/python scripts/benchmarks/trainer.py [--quick] [--keep]

Callbacks, CSV, W&B (offline) and checkpoints at their default intervals; the time is that of ``Trainer.fit``. The plain
loop computes the same exact directions and takes the same optimizer steps, and does nothing else. One thread, a minute.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import copy
import functools
import io
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common
import pytorch_lightning as pl
import torch
from rich.progress import track

from lightning_maxmargin.cli import main as maxmargin
from lightning_maxmargin.core import MarginLoss, Sequences, exact_directions
from lightning_maxmargin.modules.joint import JointSelection

COLUMNS = ["config", "steps", "plain loop", "maxmargin fit", "of it", "monitor's share", "runs", "target"]
CONFIGS = ("joint/tight", "joint/relaxed", "joint/random", "attention/multi", "attention/visual1")
ROOT = Path(__file__).parents[2]


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


if __name__ == "__main__":
    main()
