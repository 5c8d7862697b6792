"""Commands of the tutorial on clusters and of the page on resuming, run in a shell as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Why a line is not run here.
LEFT_OUT = {
    "sbatch ": "needs SLURM; tests/cli/test_launchers.py runs its script under a pretended one",
    "wandb sync ": "needs a network",
    "python scripts/sweep.py ": "18 runs; tests/cli/test_sweep.py runs such a grid",
}


def lines(page: str) -> list[str]:
    found = re.findall(r"^```bash\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/tutorials/cluster.md", "docs/howto/resume.md"])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, module in (("maxmargin", "lightning_maxmargin"), ("torchrun", "torch.distributed.run")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (bin_folder / name).chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    place = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
    }
    ran = 0
    for line in lines(page):
        if line.startswith(tuple(LEFT_OUT)):
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=place, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 2
