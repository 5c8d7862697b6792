"""A script for test_heads: a foreign module whose weights are sharded by FSDP2 over two processes, watched.

``python -m tests.ddp.sharded FOLDER [auto]`` writes ``rank-0.json`` and ``rank-1.json``: Lightning starts the second
process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_maxmargin import HeadMonitor
from tests.callbacks.test_head_monitor import SEPARATE, Foreign, some_data
from tests.callbacks.test_margin_monitor import trainer


class Sharded(Foreign):
    """Every projection by itself, then the rest."""

    done = False

    def configure_model(self) -> None:
        if self.done:
            return
        self.done = True
        for module in (self.q, self.k, self.v, self.out, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


def main(folder: Path, auto: bool) -> None:
    torch.manual_seed(0)
    monitor = HeadMonitor(sources="auto" if auto else SEPARATE, data=DataLoader(some_data(10), 4))
    two = {"devices": 2, "strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}
    t = trainer([monitor], 2, **two)
    t.fit(Sharded(), DataLoader(some_data(), 4))
    (folder / f"rank-{t.global_rank}.json").write_text(json.dumps(monitor.history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "auto" in sys.argv[2:])
