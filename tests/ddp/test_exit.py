"""A process leaves its group before the interpreter goes (otherwise Gloo's threads may abort a run that is done)."""

from __future__ import annotations

import subprocess
import sys

import pytest

# One interpreter imports, and a child of it for each of the fits leaves as any process does.
ALONE = """
import atexit, os, sys, torch
import pytorch_lightning as pl
from torch import distributed as dist
from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.data import RandomData
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from torch.utils.data import DataLoader
for name, fit in {fits!r}.items():
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        # Before the fit: the first that registers runs last.
        atexit.register(lambda: print(name, "in a group:", dist.is_initialized(), flush=True))
        exec(fit)
        dist.init_process_group("gloo", init_method="file://{folder}/" + name, rank=0, world_size=1)
        break
    print(name, "ended with", os.waitpid(child, 0)[1], flush=True)
"""
TRAINER = "pl.Trainer(max_steps=1, max_epochs=-1, accelerator='cpu', logger=False, enable_checkpointing=False{})"
FITS = {
    "ours": f"{TRAINER.format('')}.fit(JointSelection(dim=2), RandomData(n=4, T=3, d=2))",
    "monitored": "monitor = MarginMonitor(sources=SEPARATE, data=DataLoader(some_data(10), 4))\n"
    f"{TRAINER.format(', callbacks=[monitor]')}.fit(Foreign(), DataLoader(some_data(), 4))",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    code = ALONE.format(fits=FITS, folder=tmp_path_factory.mktemp("meet"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS)
def test_a_process_leaves_its_group(fit: str, said: str) -> None:
    of_fit = [line for line in said.splitlines() if line.startswith(f"{fit} ")]
    assert of_fit == [f"{fit} in a group: False", f"{fit} ended with 0"]
