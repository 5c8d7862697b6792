"""Direction gap by precision: what a precision does is done or refused, and margins are measured in float64 in each.

    .venv/bin/python scripts/precision.py [--accelerator gpu]

prints the table of docs/many_processes.md: each problem trained in each precision of a Trainer, by ``maxmargin fit``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
PRECISIONS = ("64-true", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
#: The config of each problem, and the key of the limit that theory gives it.
PROBLEMS = {
    "relaxed example": ("joint/relaxed", "direction_gap/relaxed"),
    "a random joint instance": ("joint/random", "direction_gap/attention"),
    "planted text": ("text/planted", "direction_gap/attention"),
}
QUIET = ("--wandb", "disabled", "--report", "false", "--trainer.enable_progress_bar", "false")


def fit(config: str, precision: str, accelerator: str) -> dict[str, Any] | str:
    """The summary of a run, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = ["fit", "--config", config, "--trainer.precision", precision, "--trainer.accelerator", accelerator]
        call = [sys.executable, "-m", "lightning_maxmargin", *words, *QUIET, "--run_dir", str(run_dir)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1].removeprefix("maxmargin: error: ")
        return dict(json.loads((run_dir / "summary.json").read_text()))


def cell(found: dict[str, Any] | str, key: str) -> str:
    """The gap and the share of the SVM's margin that is reached."""
    if isinstance(found, str):
        return "refused" if "precision" in found else "stopped"
    gap, margin = found[key], found["relative_margin/attention"]
    return "-" if gap is None or margin is None else f"{gap:.1e} ({margin:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    accelerator = parser.parse_args().accelerator
    refusals: list[str] = []
    print("| problem: direction gap (relative margin) |", " | ".join(PRECISIONS), "|")
    print("|---|" + "---|" * len(PRECISIONS))
    for name, (config, key) in PROBLEMS.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda precision, of=config: fit(of, precision, accelerator), PRECISIONS))
        cells = [cell(x, key) for x in found]
        pairs = zip(PRECISIONS, found, strict=True)
        refusals += [f"{name}, {precision}: {x}" for precision, x in pairs if isinstance(x, str)]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    print("", *refusals, sep="\n")


if __name__ == "__main__":
    main()
