"""LightningCLI that lays an error before the first step to the word, the checkpoint or the process it came from."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.utilities.model_helpers import is_overridden

from lightning_maxmargin.callbacks import RankWatch
from lightning_maxmargin.errors import InputError, NonFiniteError, RankError
from lightning_maxmargin.modules.sharding import refuse_sharding
from lightning_maxmargin.ranks import print_failure
from lightning_maxmargin.run.config_errors import (
    is_input,
    is_ours,
    key_of_error,
    lacking_memory,
    of_lightning,
    of_own_code,
    one_line,
    quoted,
)
from lightning_maxmargin.run.processes import check_precision, check_sharding, of_a_process
from lightning_maxmargin.run.words import given_words, trainer_defaults


class RefusingCLI(LightningCLI):
    """What is raised while classes and Trainer are made, and before the first step, becomes one line with its key.

    An error of the user's own code stays what it is.
    """

    #: Of the checkpoint, until the trainer is made.
    content: Mapping[str, Any] = MappingProxyType({})
    #: Whether there is a checkpoint of which nothing tells that it is what was saved.
    is_unsummed = False
    #: Where the run begins.
    step = 0
    run_dir: Path
    ranks: RankWatch

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            # Of the options that the checkpoint says.
            found = self._by_checkpoint(error)
            if found is not error:
                raise found from error
            if is_ours(error) or (of_own_code(error) and not isinstance(error, ArgumentError)):
                raise
            config = self.config[self.subcommand]
            if told := lacking_memory(error, config):
                raise InputError(told) from error
            key = key_of_error(error, config)
            raise InputError(": ".join(filter(None, [key, one_line(error)]))) from error

    def _refusing_trainer(self, kwargs: dict[str, Any]) -> pl.Trainer:
        """The trainer; what Lightning turns into something else, or raises of a scheduler's variables, is refused."""
        config = self.config[self.subcommand]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except Exception as error:
            if "ModelParallelStrategy" in str(error) and not is_overridden("configure_model", self.model):
                refuse_sharding(self.model)
            if is_input(error) or of_own_code(error):
                raise
            raise InputError(f"{self._word_at_fault(error, kwargs)}: {quoted(error)}") from error
        check_precision(config.trainer.precision, trainer)
        check_sharding(trainer, self.model)
        return trainer

    def _word_at_fault(self, error: Exception, kwargs: dict[str, Any]) -> str:
        """The key of the Trainer without which it can be made; those that the error names are tried first."""
        given, defaults = given_words(self.config[self.subcommand].trainer), trainer_defaults()
        for key in sorted(given, key=lambda key: key not in str(error)):
            try:
                super().instantiate_trainer(**{**kwargs, key: defaults[key]})
                return f"trainer.{key}"
            except Exception:
                continue
        return "trainer"

    def _failure(self, error: Exception) -> BaseException:
        """What ended the run: of several processes one prints the rank and the cause, when the others have ended."""
        failure = self.ranks.failure
        if failure is None:
            return self._of_words(self._by_checkpoint(of_a_process(error)))
        self.ranks.end_others()
        if self.ranks.prints:
            print_failure(failure)
        return RankError(str(failure), failure.status)

    def _by_checkpoint(self, error: BaseException) -> BaseException:
        """An error before the first step, of a run from content that nothing vouches for, is laid to that."""
        told = is_input(error) or isinstance(error, NonFiniteError | RankError | OSError | MemoryError)
        told = told or of_own_code(error) or isinstance(error, torch.OutOfMemoryError)
        if told or not self.is_unsummed or not self._has_done_nothing():
            return error
        reason = " ".join(one_line(error).split())[:200]
        path = self.config[self.subcommand].ckpt_path
        return InputError(f"ckpt_path: {path} cannot be used ({type(error).__name__}: {reason}); use another")

    def _has_done_nothing(self) -> bool:
        """Whether nothing would be lost with the run directory."""
        if self.is_unsummed:
            return not hasattr(self, "trainer") or self.trainer.global_step <= self.step
        return not (self.run_dir / "metrics.csv").exists()

    def _of_words(self, error: BaseException) -> BaseException:
        """Itself, or one of input: what Lightning raises before the first step, or a class of a config by itself."""
        if not of_lightning(error) or is_input(error) or of_own_code(error):
            return error
        config = self.config[self.subcommand]
        key = key_of_error(error, config)
        if self.trainer.global_step > self.step and not key.startswith("trainer."):
            return error
        named = [f"trainer.{word}" for word in given_words(config.trainer) if word in str(error)]
        return InputError(f"{key or ', '.join(named) or 'trainer'}: {quoted(error)}")
