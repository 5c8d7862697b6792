"""A process leaves its group before the interpreter goes (otherwise Gloo's threads may abort a run that is done)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ALONE = """
import atexit, torch
from torch import distributed as dist
atexit.register(lambda: print("in a group:", dist.is_initialized()))  # the first that registers runs last
import pytorch_lightning as pl
from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.data import RandomData
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from torch.utils.data import DataLoader
{fit}
dist.init_process_group("gloo", init_method="file://{meet}", rank=0, world_size=1)
"""
TRAINER = "pl.Trainer(max_steps=1, max_epochs=-1, accelerator='cpu', logger=False, enable_checkpointing=False{})"
FITS = {
    "ours": f"{TRAINER.format('')}.fit(JointSelection(dim=2), RandomData(n=4, T=3, d=2))",
    "monitored": "monitor = MarginMonitor(sources=SEPARATE, data=DataLoader(some_data(10), 4))\n"
    f"{TRAINER.format(', callbacks=[monitor]')}.fit(Foreign(), DataLoader(some_data(), 4))",
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_process_leaves_its_group(fit: str, tmp_path: Path) -> None:
    code = ALONE.format(fit=fit, meet=tmp_path / "meet")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "in a group: False"
