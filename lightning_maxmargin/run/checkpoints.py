"""Checkpoints that say when they are damaged: torch.load checks no sums, and 12 of 300 flipped bits loaded silently."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lightning_maxmargin.atomic import ToldFile, whole, write_text
from lightning_maxmargin.errors import InputError, OutputError
from lightning_maxmargin.run.content import SUM, content_sum, has_finite_weights, refuse_altered, refuse_misshapen

#: What every run saves, and what was that before.
LAST, BEFORE = "last.ckpt", "before.ckpt"


class CheckedCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there, with ``NAME.ckpt.sha256`` beside each, which it must match.

    A sum of the content travels inside as well: the file beside is lost with a copy.

    Written beside their place, to the disk, and renamed: Lightning writes to the folder of temporary files, from where
    another file system gets a copy, so that a kill or a full disk leaves half of one and nothing of that before.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Gets the error of a file that cannot be written, and the old one stays; None raises it.
        self.tolerated: list[OSError] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            self._save(checkpoint, Path(path))
        except OSError as error:
            if self.tolerated is None:
                raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error
            self.tolerated.append(error)

    @staticmethod
    def _save(checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "state_dict" in checkpoint:
            # Not of what forked processes hand back, which is read at once.
            checkpoint = {**checkpoint, SUM: content_sum(checkpoint)}
        with whole(path, on_disk=True) as part:
            with ToldFile(part) as file:
                torch.save(checkpoint, file)  # type: ignore[arg-type]
            own = checksum(part)
            # Before the renaming: a process killed in between leaves a checkpoint without a sum, not with a wrong one.
            checksum_path(path).unlink(missing_ok=True)
        write_text(checksum_path(path), own + "\n")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The content is Lightning's: forked processes hand their weights back in a file without a state_dict.
        if "://" not in str(path):
            verify_file(Path(path))
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


def verify_file(path: Path) -> None:
    """Compares a checkpoint with the checksum beside it, and without one each of its parts with its own.

    torch.load looks at none of them: of 500 flipped bits 348 were loaded.

    Raises:
        InputError: one does not match.
    """
    beside = checksum_path(path)
    if beside.is_file():
        if beside.read_text(errors="replace").strip() != checksum(path):
            raise InputError(
                f"ckpt_path: {path} does not match its checksum, so it is damaged; use an earlier checkpoint"
            )
        return
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except Exception as error:  # of what is no zip file, or whose directory is damaged, zipfile raises many kinds
        raise InputError(f"ckpt_path: {path} is no whole checkpoint ({type(error).__name__}); use another") from error
    if damaged is not None:
        raise InputError(f"ckpt_path: {path} is damaged in its part {damaged!r}; use an earlier checkpoint")


def verify_checkpoint(path: Path, goes_on: bool = False) -> dict[str, Any]:
    """Refuses a checkpoint that is damaged or none at all, without running anything in it.

    Args:
        path: of the checkpoint; a checksum beside it or within is compared where there is one.
        goes_on: whether training does from it, which needs more than the weights.

    Returns:
        What it holds, on the CPU.

    Raises:
        InputError: it does not match its checksum, cannot be read, or holds no weights.
    """
    verify_file(path)
    try:
        # weights_only: a pickle from elsewhere could run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"ckpt_path: {path} is no whole checkpoint ({type(error).__name__}); use another") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"ckpt_path: {path} holds no weights of a LightningModule; use another")
    refuse_altered(path, content)
    refuse_misshapen(path, content, goes_on)
    return content


def newest_checkpoint(run_dir: Path, wanted: Callable[[dict[str, Any]], bool] | None = None) -> Path:
    """The newest whole checkpoint of a run: its last one, the one before, or another in ``checkpoints/``.

    One with weights that are not finite is taken where there is no other.

    Args:
        run_dir: of the run.
        wanted: of those by what they hold; None is any.

    Raises:
        InputError: there is none; the message says what is wrong with those that are there.
    """
    folder = run_dir / "checkpoints"
    own = [folder / LAST, folder / BEFORE]
    others = sorted(set(folder.glob("*.ckpt")) - set(own), key=lambda path: -path.stat().st_mtime)
    reasons = []
    doubtful = []
    for path in filter(Path.is_file, [*own, *others]):
        try:
            content = verify_checkpoint(path, goes_on=True)
        except InputError as error:
            reasons.append(str(error).removeprefix("ckpt_path: "))
        else:
            if wanted is not None and not wanted(content):
                continue
            if has_finite_weights(content):
                return path
            doubtful.append(path)
    if doubtful:
        return doubtful[0]  # of a model that may hold such numbers from the start
    told = f": {reasons[0]}" if reasons else ""
    raise InputError(f"ckpt_path: last; {folder} holds no whole checkpoint{told}")
