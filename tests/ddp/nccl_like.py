"""A script for test_text: ``maxmargin`` with what Lightning does under NCCL and not under Gloo, in inference mode.

``python -m tests.ddp.nccl_like WORDS``.
"""

from typing import Any

import pytorch_lightning.loops.utilities as loops
import torch.distributed as dist

from lightning_maxmargin.cli import command


class LikeNccl:
    """torch.distributed, whose backend says that it is NCCL."""

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: "nccl") if name == "get_backend" else getattr(dist, name)


if __name__ == "__main__":
    loops.dist = LikeNccl()  # type: ignore[attr-defined]
    command()
