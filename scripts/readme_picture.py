"""Draws docs/stall.png, the picture of the README: the same example with exact and with naive gradients.

.venv/bin/python scripts/readme_picture.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.style import COLORS, new_figure, save, style_axes, suptitle

ROOT = Path(__file__).parent.parent
RUNS = {
    "exact gradient, float64": ([], COLORS["relaxed"], "-"),
    "exact gradient, bf16-mixed": (["--trainer.precision", "bf16-mixed"], COLORS["rate_coupled"], (0, (1, 2))),
    "naive gradient, float64": (["--model.gradient", "naive"], COLORS["strict"], "-"),
    "naive gradient, float32": (
        ["--model.gradient", "naive", "--trainer.precision", "32-true"],
        COLORS["head"],
        (0, (5, 2)),
    ),
}


def main() -> None:
    """Four runs of configs/joint/relaxed.yaml in one figure."""
    figure = new_figure(3.6)
    ax = figure.add_subplot()
    folder = Path(tempfile.mkdtemp())
    for i, (label, (options, color, dashes)) in enumerate(RUNS.items()):
        run_dir = folder / str(i)
        call = [sys.executable, "-m", "lightning_maxmargin", "fit", "--config", "configs/joint/relaxed.yaml", *options]
        call += ["--run_dir", str(run_dir), "--wandb", "disabled", "--report", "false"]
        subprocess.run(call, cwd=ROOT, check=True)
        steps, gaps = RunFiles.load(run_dir).metrics.series("direction_gap/relaxed")
        ax.plot(steps, gaps, label=label, color=color, linestyle=dashes, linewidth=2.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    style_axes(ax, "", "optimisation step (log)", "direction gap of p to its limit (log)")
    suptitle(figure, "Naive gradients leave the true limit once softmax saturates; exact ones reach it")
    save(figure, ROOT / "docs" / "stall.png")


if __name__ == "__main__":
    main()
