"""The whole config of a run: kept as a file, and for loggers as a flat table named as on the command line."""

from __future__ import annotations

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.run.directory import versions
from lightning_maxmargin.run.flat import flattened
from lightning_maxmargin.run.resume import CONFIG
from lightning_maxmargin.run.rows import RowsLogger


def log_config(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Hands all loggers but those of files the config, the versions, the command and the number of processes."""
    found = dict(flattened(config))
    for package in versions().split(", "):
        name, version = package.rsplit(" ", 1)
        found[f"versions.{name}"] = version
    found |= {"command": " ".join(sys.argv[1:]), "world_size": trainer.world_size}
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(found)


def plain_config(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A parsed config in YAML's own kinds, with all that nobody has said."""
    return dict(yaml.safe_load(parser.dump(config, skip_unset=False, skip_validation=True)))


def _text(config: dict[str, Any]) -> str:
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _rows_loggers(trainer: pl.Trainer) -> list[RowsLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, RowsLogger)]


class RunConfig(SaveConfigCallback):
    """Keeps ``config.yaml`` in the run directory, ready for ``--config``: without the directory itself.

    The files of a run that goes on in its directory change at its first step: what is refused before leaves them.
    """

    #: What ``config.yaml`` holds, when it is there.
    written: str | None = None

    def __init__(self, *args: Any, goes_on: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.goes_on = goes_on  # in its own directory

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Not yet: what the module's own setup or the checkpoint is refused for leaves the files as they are."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # By which another word is refused when the run goes on; written out once, for a run that saves at every step.
        checkpoint[CONFIG] = dict(self._words)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return plain_config(self.parser, self.config)

    @cached_property
    def _words(self) -> dict[str, Any]:
        """The config by the names of the command line, in the kinds that weights_only loads."""
        words = dict(flattened(self._plain))
        return dict(json.loads(json.dumps(words, default=str)))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            if self.goes_on:
                for logger in _rows_loggers(trainer):
                    logger.wait()
            else:
                self._write(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero and self.written is None:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        config = dict(self._plain)
        # The same run gone on with begins nowhere else.
        for name in ("run_dir", "ckpt_path") if self.goes_on else ("run_dir",):
            config.pop(name, None)
        self.written = _text(config)
        write_text(Path(trainer.default_root_dir) / "config.yaml", self.written)
        for logger in _rows_loggers(trainer):
            logger.begin()
        log_config(trainer, config)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where the run directory was removed while training, and made again with the rows."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        if self.written is not None and not path.is_file():
            write_text(path, self.written)
