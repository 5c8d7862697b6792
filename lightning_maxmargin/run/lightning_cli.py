"""LightningCLI whose fit owns a run directory and ends with a table and a report."""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentError
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden

import lightning_maxmargin.text  # noqa: F401  (so that --data knows its classes by their bare names)
from lightning_maxmargin.atomic import refuse_existing, remove_empty
from lightning_maxmargin.callbacks import (
    EnsembleMonitor,
    FiniteGuard,
    HeadMonitor,
    Interrupt,
    MarginMonitor,
    Predictions,
    RankWatch,
    StepProgress,
    TokenMonitor,
)
from lightning_maxmargin.callbacks.at_evaluations import refuse_unlogged
from lightning_maxmargin.data.module_loaders import ModuleLoaders, has_split
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.ensemble import Ensemble
from lightning_maxmargin.modules.joint import JointSelection
from lightning_maxmargin.run.any_module import (
    ends_by_epochs,
    is_own,
    model_named,
    refuse_unwatched,
    refuse_without_data,
)
from lightning_maxmargin.run.checkpoints import CheckedCheckpointIO, verify_checkpoint
from lightning_maxmargin.run.config_errors import (
    is_input,
    of_own_code,
    one_line,
)
from lightning_maxmargin.run.content import SUM, load_or_refuse, refuse_other_weights
from lightning_maxmargin.run.directory import last_checkpoint, make_run_dir, plan_run_dir
from lightning_maxmargin.run.finish import finish_fit
from lightning_maxmargin.run.flat import flattened
from lightning_maxmargin.run.last_checkpoint import LastCheckpoint, leave_last_to_the_run
from lightning_maxmargin.run.loggers import run_loggers
from lightning_maxmargin.run.nulls import refuse_nulls
from lightning_maxmargin.run.options import TRAINER_DEFAULTS, add_run_options
from lightning_maxmargin.run.parsers import STRICT
from lightning_maxmargin.run.processes import (
    check_nodes,
    dtype_of,
    launchable_again,
    limit_waiting,
    requeue_job,
)
from lightning_maxmargin.run.refusing_cli import RefusingCLI
from lightning_maxmargin.run.restored_state import RefuseOtherState
from lightning_maxmargin.run.resume import (
    checkpoint_to_go_on,
    kept_words,
    nothing_left,
    other_data,
    refuse_other_optimizer,
    refuse_other_words,
    words_said,
)
from lightning_maxmargin.run.run_config import RunConfig, plain_config
from lightning_maxmargin.run.shipped import is_file
from lightning_maxmargin.run.summary import RunSummary
from lightning_maxmargin.run.torch_flags import torch_as_before
from lightning_maxmargin.run.untrained import RefuseUntrained
from lightning_maxmargin.run.wandb_end import close_wandb, close_where_it_failed, tell_wandb
from lightning_maxmargin.run.words import check_words

#: What ``--ckpt_path`` says for the newest whole checkpoint of the run in ``--run_dir``, which then goes on there.
GO_ON = "last"
LINKED = ("dim", "value_dim", "query_dim", "num_classes")  # options of the model that follow from the data
LINKED_WORDS = [f"model.{key}" for key in LINKED]
OWN_MODELS = (JointSelection, Ensemble)
FIT_CALLBACKS = {"monitor": MarginMonitor, "tokens": TokenMonitor, "guard": FiniteGuard}


# Its __del__ asks for these also where __init__ has failed, and would print a traceback beside the line of the error.
Profiler._stage = Profiler._output_file = None


class MarginCLI(RefusingCLI):
    """LightningCLI whose fit owns a run directory and ends with a table and a report."""

    latest_parser: LightningArgumentParser | None = None
    #: What the processes that are started like this one are given beside what the parser knows.
    more_argv: Sequence[str] = ()
    #: Directories that it has made for itself.
    made: Sequence[Path] = ()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command of this line alone: to make the parsers of the other three takes a third of a short fit."""
        known = RefusingCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        MarginCLI.latest_parser = parser
        add_run_options(parser)
        for key, callback in FIT_CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        for key in LINKED:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")
        # A config that names no class is one of JointSelection, key by key. One that does must not begin with its
        # defaults: those that both classes take would stand in place of the other class's own.
        named = model_named(sys.argv[1:])
        if named is None:
            parser.set_defaults({"model": {"class_path": "lightning_maxmargin.JointSelection"}})
        elif not is_own(named):
            parser.set_defaults({"data": {"class_path": "lightning_maxmargin.data.ModuleLoaders"}})
            if ends_by_epochs(sys.argv[1:]):
                parser.set_defaults({"trainer.max_steps": -1})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except Exception as error:
            if is_input(error) or of_own_code(error):
                raise
            raise InputError(one_line(error, parser, OWN_MODELS)) from error
        config = self.config[self.config.subcommand]
        check_words(config, self.config.subcommand)
        refuse_nulls(config, FIT_CALLBACKS, LINKED_WORDS)

    def _parse_ckpt_path(self) -> None:
        config = self.config[self.config.subcommand]
        self.goes_on = config.ckpt_path == GO_ON
        self.save_config_kwargs = {}
        if self.goes_on:
            if config.run_dir is None:
                raise InputError(f"ckpt_path: {GO_ON} is of the run in --run_dir; name its directory there")
            config.ckpt_path = str(checkpoint_to_go_on(Path(config.run_dir), config.trainer))
        if self.config.subcommand == "fit":
            self.run_dir = plan_run_dir(config.run_dir, config.name, self.goes_on)
            if last_checkpoint(self.run_dir) and not self.goes_on:
                config.ckpt_path, self.goes_on = str(checkpoint_to_go_on(self.run_dir, config.trainer)), True
            self.save_config_kwargs["goes_on"] = self.goes_on
        path = self.config[self.config.subcommand].ckpt_path
        # Lightning is about to write the checkpoint's over them.
        self.given = self._linked()
        if not path and self.config.subcommand != "fit":
            raise InputError(
                f"ckpt_path: {self.config.subcommand} needs the checkpoint of a run; give it with --ckpt_path"
            )
        if path is not None:
            if not is_file(path):
                raise InputError(f"ckpt_path: {path} is no file; name a checkpoint of an earlier run")
            self.content = verify_checkpoint(Path(path), self.config.subcommand == "fit")
            self._tell_if_unsummed(path)
            self.step = int(self.content.get("global_step", 0))
            self._take_words(path)

    def _take_words(self, path: str) -> None:
        """Refuses words that are not those of the checkpoint; what nobody says is the checkpoint's."""
        config = self.config[self.config.subcommand]
        kept = {name: x for name, x in kept_words(self.content).items() if name not in LINKED_WORDS}
        if self.config.subcommand != "fit":
            of_model = {name: x for name, x in kept.items() if name.startswith("model")}
            refuse_other_words(path, of_model, self._words(), words_said(sys.argv[1:], configs=False))
            super()._parse_ckpt_path()
            return
        if told := nothing_left(self.content, config.trainer):
            raise InputError(f"ckpt_path: {path} {told}")
        said = [name for name in words_said(sys.argv[1:]) if config.get(name) is not True]  # a seed that is drawn
        refuse_other_words(path, kept, self._words(), said)
        config.seed_everything = kept.get("seed_everything", config.seed_everything)
        super()._parse_ckpt_path()
        # What the model itself has not kept, and nobody says: its optimizer, its schedule, the size of the batches.
        taken = dict(flattened({"model": dict(self.content.get("hyper_parameters") or {})}))
        now = self._words()
        refuse_other_words(path, kept, now, now.keys() - taken.keys())
        if other := other_data(kept, now):
            rank_zero_warn(f"ckpt_path: {path} goes on with other data: {', '.join(other[:5])}")

    def _words(self) -> dict[str, Any]:
        """All that this command is told, by the names of the command line."""
        subcommand = self.config.subcommand
        return dict(flattened(plain_config(self._parser(subcommand), self.config[subcommand])))

    def _tell_if_unsummed(self, path: str) -> None:
        """What Lightning's own Trainer or an earlier version has saved vouches for nothing."""
        self.is_unsummed = SUM not in self.content
        if self.is_unsummed:
            rank_zero_warn(f"ckpt_path: {path} holds no sum of its content; what it says is taken as it is")

    def _linked(self) -> dict[str, Any]:
        model = self.config[self.config.subcommand].get("model") or {}
        given = model.get("init_args") or {}
        return {key: given.get(key) for key in LINKED}

    def _refuse_linked(self) -> None:
        """What follows from the data cannot be set otherwise: it would be overridden silently."""
        path = self.config[self.subcommand].ckpt_path
        for key, now in self._linked().items():
            if not hasattr(self.datamodule, key):
                continue
            of_data, given = getattr(self.datamodule, key), self.given[key]
            if given not in (None, of_data) and given != _default(type(self.model), key):
                raise InputError(f"model.{key}: {given}, but the data's is {of_data}; leave it out")
            if path and now not in (None, of_data, given):
                raise InputError(f"ckpt_path: {path} is of data with {key} {now}, these have {of_data}")

    def before_instantiate_classes(self) -> None:
        sys.argv += self.more_argv
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            if self.subcommand == "predict":
                refuse_existing(Path(config.output))
            config.trainer.logger = False
            return
        self.started = time.perf_counter()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        self._refuse_linked()
        if path := self.config[self.subcommand].ckpt_path:
            refuse_other_weights(path, self.content, self.model.state_dict())
        if self.subcommand == "fit":
            config = self.config.fit
            if config.ckpt_path:
                refuse_other_optimizer(config.ckpt_path, self.model, self.content)
            self.content = {}
            if hasattr(self.model, "check_data"):
                self.model.check_data(self.datamodule)
            refuse_without_data(self.model, self.datamodule)
            kwargs["default_root_dir"] = str(self.run_dir)
            kwargs["plugins"] = [*_listed(config.trainer.plugins), CheckedCheckpointIO()]
            # The run's own rows, up to the step that it goes on from.
            kept, given = self.step if self.goes_on else None, self.config_init.fit.trainer.logger
            kwargs["logger"] = run_loggers(self.run_dir, config, given, kept)
        elif isinstance(self.model, Ensemble):
            raise InputError(f"model: Ensemble is trained and measured by fit; there is nothing to {self.subcommand}")
        self.ranks = RankWatch()
        trainer = self._refusing_trainer(kwargs)
        if path:
            # Where the model itself is loaded; strategies that shard it do so on their own.
            strategy: Any = trainer.strategy
            load = partial(load_or_refuse, strategy.load_model_state_dict, path, dtype_of(trainer), self.model)
            strategy.load_model_state_dict = load
        # Before any other callback: what failed is told before the others tidy up after it.
        trainer.callbacks.insert(0, self.ranks)  # type: ignore[attr-defined]
        self.ranks.guard(trainer)
        close_where_it_failed(trainer)
        if self.subcommand == "fit":
            trainer.callbacks[1:1] = [RefuseUntrained(), RefuseOtherState(path)]  # type: ignore[attr-defined]
            refuse_unlogged(trainer.callbacks, self.model, self.datamodule)  # type: ignore[attr-defined]
            leave_last_to_the_run(trainer.callbacks, self.run_dir / "checkpoints")  # type: ignore[attr-defined]
        elif self._is_text and isinstance(trainer.strategy, ModelParallelStrategy):
            # Its weights go into parts of a model, which has to be there; with others the checkpoint makes the model.
            self.datamodule.names = list(self.content.get("text", {}).get("names", []))
        self.ranks.timeout = limit_waiting(trainer.strategy, self.config[self.subcommand].timeout)
        check_nodes(trainer)
        if self.subcommand == "fit":
            # Last of all: a run that is refused leaves no directory.
            self.made = make_run_dir(self.run_dir)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> pl.Trainer:
        fits, ensemble = self.subcommand == "fit", isinstance(self.model, Ensemble)
        if not fits or ensemble:
            callbacks = [c for c in callbacks if not isinstance(c, tuple(FIT_CALLBACKS.values()))]
        elif self._is_text:
            callbacks = [
                c for c in callbacks if not isinstance(c, MarginMonitor | TokenMonitor)
            ] + self._text_watchers()
        given = tuple(type(c) for c in _listed(config.get("callbacks")))
        if any(issubclass(kind, HeadMonitor) for kind in given):
            callbacks = [c for c in callbacks if type(c) is not MarginMonitor]
        callbacks = [c for c in callbacks if type(c) not in given]  # the user's own stands in for ours
        if fits:
            refuse_unwatched(self.model, callbacks)
            watchers = [EnsembleMonitor(**self._monitor_options("budget", "background"))] if ensemble else []
            callbacks = [*callbacks, *watchers, *self._run_callbacks(config)]
        return super()._instantiate_trainer(config, callbacks)

    def _text_watchers(self) -> list[Any]:
        from lightning_maxmargin.callbacks.text_monitor import TextMonitor
        from lightning_maxmargin.callbacks.text_output import SaveModel

        return [TextMonitor(**self._monitor_options("samples", "budget", "background")), SaveModel()]

    def _monitor_options(self, *names: str) -> dict[str, Any]:
        """What the config says of its MarginMonitor and holds for the monitor that stands in its place."""
        given = {name: self.config.fit.monitor.get(name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def _is_text(self) -> bool:
        """Whether the model is one of text, whose module (and transformers) is imported only then."""
        module = sys.modules.get("lightning_maxmargin.modules.text")
        return module is not None and isinstance(self.model, module.TextSelection)

    def _run_callbacks(self, config: dict[str, Any]) -> list[Any]:
        checkpoints = config.get("enable_checkpointing") is not False
        self.saver = saver = LastCheckpoint(self.run_dir / "checkpoints")
        self.interrupt = Interrupt(saver)
        extra: list[Any] = [RunSummary(self.run_dir, self.config.fit.name), self.interrupt]
        if config.get("enable_progress_bar") is not False:
            show = ("ensemble/settled", "direction_gap/strict", "norm/attention")
            extra.append(StepProgress(show) if isinstance(self.model, Ensemble) else StepProgress())
        extra += [saver] if checkpoints else []
        return extra

    def _run_subcommand(self, subcommand: str) -> None:
        refused, failed = False, None
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            failed = self._failure(error)
            is_refused = isinstance(failed, InputError) or getattr(failed, "status", 1) == 2
            is_new = subcommand == "fit" and not self.goes_on
            refused = is_refused and is_new and self._has_done_nothing()
            if failed is error:
                raise
            raise failed from error
        except BaseException as stopped:
            failed = stopped
            raise
        finally:
            close_wandb(self.trainer, failed)
            if refused:
                # After all, as by a checkpoint of other data: nothing is left that would stand in the way.
                shutil.rmtree(self.run_dir, ignore_errors=True)
                remove_empty(self.made)

    def after_fit(self) -> None:
        seconds = time.perf_counter() - self.started
        if self.config.fit.trainer.fast_dev_run:
            return
        if self.interrupt.requeue:
            # The job has seconds left: it goes on from its checkpoint when it runs again.
            if self.trainer.is_global_zero:
                print(requeue_job(self.run_dir))
            return
        tested: dict[str, Any] = {}
        if has_split(self.datamodule, self.model, "test") and is_overridden("test_step", self.model):
            words: dict[str, Any] = {"datamodule": self.datamodule, "ckpt_path": self._trained(), "verbose": False}
            tested = dict(self.trainer.test(self.model, **words)[0])
            tested.pop("step", None)  # where the row stands, and no result
        if self.trainer.is_global_zero:
            summary = finish_fit(self.run_dir, tested, seconds, self.config.fit.report)
            tell_wandb(self.trainer.loggers, self.run_dir, summary)
        if self.interrupt.stopped:
            raise KeyboardInterrupt

    def _trained(self) -> str | None:
        """The checkpoint to test, where forked processes have made the model: none of it is in this one."""
        last = self.run_dir / "checkpoints" / "last.ckpt"
        forked = isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher)
        return str(last) if forked and self._is_text and last.is_file() else None

    def before_validate(self) -> None:
        self._need("val", "validate")

    def before_test(self) -> None:
        self._need("test", "test")

    def _need(self, split: str, command: str) -> None:
        if not has_split(self.datamodule, self.model, split):
            owner = self.model if isinstance(self.datamodule, ModuleLoaders) else self.datamodule
            raise InputError(f"data: {type(owner).__name__} has no {split} split here, so nothing to {command}")

    def predict(self, **kwargs: Any) -> None:
        """Predicts and writes one JSON object per sequence or document, of all processes, in their order."""
        path = Path(self.config.predict.output)
        writer: Any = Predictions(path)
        if self._is_text:
            from lightning_maxmargin.callbacks.text_predictions import TextPredictions

            writer = TextPredictions(path)
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        if self.trainer.is_global_zero:
            # Of the file: forked processes have written it.
            with path.open(encoding="utf-8") as file:
                print(f"{path} ({sum(1 for _ in file):,} documents)" if self._is_text else path)


def _default(model: type, key: str) -> Any:
    parser = LightningArgumentParser()
    parser.add_class_arguments(model, "model")
    return parser.get_defaults().get(f"model.{key}")


def _listed(plugins: Any) -> list[Any]:
    return list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]


def run_trainer(about: dict[str, str], commands: dict[str, str], more_argv: Sequence[str] = ()) -> MarginCLI:
    """Runs what ``sys.argv`` orders of a Trainer.

    Args:
        about: keyword arguments of the parser: its description.
        commands: what each command does.
        more_argv: what the parser does not know and the processes of a launcher must be given as well.

    Raises:
        InputError: the arguments or the configs are wrong: one line that says what, where and what to do.
    """
    MarginCLI.more_argv = more_argv
    helps = {name: {**STRICT, "description": commands[name]} for name in MarginCLI.subcommands()}
    try:
        with launchable_again(), torch_as_before():
            return MarginCLI(
                pl.LightningModule,
                pl.LightningDataModule,
                save_config_callback=RunConfig,
                seed_everything_default=0,
                trainer_defaults=TRAINER_DEFAULTS,
                parser_kwargs={"prog": "maxmargin", **about, **STRICT, **helps},
                subclass_mode_data=True,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
            )
    except MisconfigurationException as error:
        # Lightning's own error for a trainer that cannot be: no such accelerator, strategy or optimizer.
        raise InputError(" ".join(str(error).split())) from error
    except (ArgumentError, TypeError, ValueError) as error:
        if not is_input(error):
            raise
        raise InputError(one_line(error, MarginCLI.latest_parser, OWN_MODELS)) from error
