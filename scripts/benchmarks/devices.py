"""The same work on the CPU and on a GPU: whether the numbers agree, and what each takes.

    .venv/bin/python scripts/benchmarks/devices.py [--device cuda] [--quick] [--out FILE] [--texts FILE ENCODER]

Precision: exact directions, the worked examples in every precision of a Trainer, ensembles, solvers fed from the
device. Speed: instance-steps of ensembles, and with --texts (a JSONL with labels, an encoder's directory or name)
encoding, training and fine-tuning. Without a GPU it compares the CPU with itself, which tests the script.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_maxmargin import solve_att_svm
from lightning_maxmargin.cli import main as maxmargin
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.exact import exact_directions
from lightning_maxmargin.core.losses import MarginLoss, find_loss
from lightning_maxmargin.core.stack import pack
from lightning_maxmargin.data.instances import RandomInstances

PRECISIONS = ("64-true", "32-true", "bf16-mixed", "16-mixed")
Rows = list[list[str]]


def seconds_of(call: Callable[[], Any], device: str, runs: int = 5) -> float:
    """Median wall-clock seconds after a warm-up, the device's queue emptied before each look at the clock."""
    times = []
    for _ in range(runs + 1):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --- do the numbers agree? ------------------------------------------------------------------------------------


def directions_rows(device: str) -> Iterator[list[str]]:
    """Largest relative difference of exact directions between device and CPU, at norms of p from 1 to 1e4."""
    loss = find_loss("logistic", "loss")
    assert isinstance(loss, MarginLoss)
    for dtype in (torch.float64, torch.float32):
        worst = 0.0
        for norm in (1.0, 10.0, 100.0, 1e4):
            g = torch.Generator().manual_seed(int(norm))
            keys = torch.randn(64, 16, 24, generator=g, dtype=torch.float64).to(dtype)
            labels = torch.randn(64, generator=g).sign().to(dtype)
            p, v = (torch.nn.functional.normalize(torch.randn(24, generator=g), dim=0).to(dtype) for _ in "pv")
            data, p = Sequences(keys, labels), norm * p
            on_cpu = exact_directions(data, keys @ p, v, loss)
            # The same scores: their rounding is p's own, not that of the direction.
            there = exact_directions(data.to(device), (keys @ p).to(device), v.to(device), loss)
            for a, b in ((on_cpu.attention, there.attention.cpu()), (on_cpu.head, there.head.cpu())):
                worst = max(worst, float((a - b).double().norm() / a.double().norm()))
        yield [f"exact directions, {str(dtype)[6:]}, norms 1 to 1e4", f"{worst:.1e}"]


def fit_rows(device: str, quick: bool) -> Iterator[list[str]]:
    """Direction gap of a worked example's attention, by precision and device."""
    for config in ("joint/tight", "joint/relaxed"):
        for precision in PRECISIONS:
            places = ["cpu", device] if precision != "16-mixed" else [device] * device.startswith("cuda")
            gaps = [_gap(config, precision, where, quick) for where in places]
            if gaps:
                yield [f"{config}, {precision}: direction gap on {' and '.join(places)}", ", ".join(gaps)]


def _gap(config: str, precision: str, device: str, quick: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        steps = ["--trainer.max_steps", "300"] if quick else []
        accelerator = "gpu" if device.startswith("cuda") else "cpu"
        argv = ["fit", "--config", config, "--run_dir", f"{folder}/run", "--wandb", "disabled", "--report", "false",
                "--trainer.enable_progress_bar", "false", "--trainer.accelerator", accelerator,
                "--trainer.precision", precision, *steps]  # fmt: skip
        if maxmargin(argv):
            return "failed"
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        return f"{summary['direction_gap/attention']:.1e} ({summary['seconds']:.1f} s)"


def solver_rows(device: str) -> Iterator[list[str]]:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 6, 8, 10, generator=g, dtype=torch.float64)
    selected = (keys @ torch.randn(10, generator=g, dtype=torch.float64)).argmax(-1)
    here, there = solve_att_svm(keys, selected), solve_att_svm(keys.to(device), selected.to(device))
    same = bool((torch.as_tensor(here.direction) == torch.as_tensor(there.direction)).all())
    yield ["200 attention SVMs of keys on the device: the same directions", str(same)]
    keys = torch.randn(8_000, 128, 64, generator=g, dtype=torch.float32)
    selected = (keys @ torch.randn(64, generator=g)).argmax(-1)
    seconds, directions = [], []
    for where in ("cpu", device):
        on, at = keys.to(where), selected.to(where)
        seconds.append(seconds_of(lambda on=on, at=at: directions.append(solve_att_svm(on, at)), where, 3))
    apart = float(torch.as_tensor(directions[0].direction - directions[-1].direction).norm())
    told = f"{directions[0].status}, {directions[-1].status}; {apart:.0e}; {seconds[0]:.2f} s, {seconds[1]:.2f} s"
    yield [f"1,016,000 rows of 64 on cpu and {device}: status, distance of directions, seconds", told]


# --- what does it take? ---------------------------------------------------------------------------------------


def ensemble_rows(device: str, quick: bool) -> Iterator[list[str]]:
    for count in (1_000,) if quick else (1_000, 10_000, 100_000):
        data = RandomInstances(B=count, seed=0)
        train, heads = data.sequences("train"), data.head
        assert train is not None and heads is not None  # noqa: PT018
        batch, speeds = pack(train).batch(torch.float32), []
        for where in ("cpu", device):
            given = heads.T.to(where, torch.float32)
            state = EnsembleState(
                batch.to(torch.float32, where), head=given, train="attention", update="accelerated", attention_lr=1.0
            )
            speeds.append(50 * count / seconds_of(lambda state=state: [state.step() for _ in range(50)], where))
        yield [f"{count:,} instances: million instance-steps per second, cpu and {device}",
               f"{speeds[0] / 1e6:.2f}, {speeds[1] / 1e6:.2f}"]  # fmt: skip


def text_rows(texts: str, encoder: str, device: str) -> Iterator[list[str]]:
    from lightning_maxmargin.text.hidden import cached_hidden
    from lightning_maxmargin.text.pretrained import pretrained_encoder
    from lightning_maxmargin.text.records import read_documents

    documents = read_documents(texts)
    found = pretrained_encoder(encoder)
    pieces = found.pieces(documents.texts)
    count = int(pieces.starts[-1])
    for where in dict.fromkeys(("cpu", device)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            cached_hidden(found, documents.texts, pieces, [found.default_layer], folder, where)
            rate = count / (time.perf_counter() - start)
        yield [f"encoding {count:,} word pieces on {where}: pieces per second", f"{rate:,.0f}"]
    tuned = ["--model.finetune_layers", "2"]
    alone = ["--config", "trainer/fsdp2", "--trainer.devices", "1", "--trainer.strategy.data_parallel_size", "1"]
    ways: dict[str, list[str]] = {"frozen": [], "two layers tuned": tuned}
    if device.startswith("cuda"):
        ways |= {"two layers tuned, trainer/gpus (NCCL)": [*tuned, "--config", "trainer/gpus"]}
        ways |= {"two layers tuned, trainer/fsdp2": [*tuned, *alone]}
    for name, options in ways.items():
        for precision in ("32-true", "bf16-mixed") if device.startswith("cuda") else ("32-true",):
            yield [
                f"{name}, {precision} on {device}: accuracy, seconds",
                _text_fit(texts, encoder, device, precision, options),
            ]


def _text_fit(texts: str, encoder: str, device: str, precision: str, options: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        argv = ["fit", "--config", "text/finetune", "--data.train", texts, "--data.encoder", encoder, "--run_dir",
                f"{folder}/run", "--wandb", "disabled", "--report", "false", "--trainer.enable_progress_bar", "false",
                "--trainer.accelerator", "gpu" if device.startswith("cuda") else "cpu",
                "--trainer.precision", precision, *options]  # fmt: skip
        if maxmargin(argv):
            return "failed"
        metrics = Path(folder, "run", "metrics.csv").read_text().splitlines()
        column = metrics[0].split(",").index("val/accuracy")
        accuracy = [row.split(",")[column] for row in metrics[1:] if row.split(",")[column]][-1]
        seconds = json.loads(Path(folder, "run", "summary.json").read_text())["seconds"]
        return f"{float(accuracy):.3f}, {seconds:.1f} s"


def rows_of(options: argparse.Namespace) -> Iterator[list[str]]:
    yield from directions_rows(options.device)
    yield from solver_rows(options.device)
    yield from fit_rows(options.device, options.quick)
    yield from ensemble_rows(options.device, options.quick)
    if options.texts:
        yield from text_rows(*options.texts, options.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--texts", nargs=2, metavar=("FILE", "ENCODER"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    title = f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    table = Table("what", "measured", title=title)
    rows = []
    for row in rows_of(options):
        rows.append(row)
        table.add_row(*row)
        print(" | ".join(row), flush=True)
        if options.out:
            lines = [f"{title}\n", "| what | measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
