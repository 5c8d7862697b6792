"""``maxmargin COMMAND``: reads the command and runs it, with one-line errors; help costs no import of Lightning."""

from __future__ import annotations

import errno
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NoReturn

from lightning_maxmargin import __version__
from lightning_maxmargin.errors import InputError, NonFiniteError, OutputError, RankError
from lightning_maxmargin.noise import silence_runs
from lightning_maxmargin.run.imports import collected_later
from lightning_maxmargin.run.shipped import with_files, with_text
from lightning_maxmargin.run.streams import readers_may_go
from lightning_maxmargin.run.variables import RUN_DIR_VARIABLE

TRUST_FLAG = "--trust-config"
#: Errors of the system that say nothing of this program: a disk that is full, broken, gone or not to be written.
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
#: Tells the processes that a launcher starts by the same script which of its calls they are for: PID:NUMBER.
CALL_VARIABLE = "MAXMARGIN_CALL"
HELP = ("--help", "-h")
#: Of a command with a Trainer: every option, as Lightning has them, some 600 lines.
FULL_HELP = "--help.full"
ABOUT = "Max-margin token selection in attention."
TRAINER_COMMANDS = {
    "fit": "Trains, watches both margins against their SVMs, and ends with a table and a report.",
    "validate": "Measures a checkpoint on the validation split.",
    "test": "Measures a checkpoint on the test split.",
    "predict": "Writes logits, attention and selected token of every sequence as JSON lines.",
}
COMMANDS = {
    **TRAINER_COMMANDS,
    "layers": "Compares key layers on your own texts: layers --data.train FILE.",
    "path": "Solves a regularisation path: --config paths/local.",
    "reproduce": "Lists the papers' experiments, or runs one of them or all.",
    "evaluate": "Measures the rationales of a run on text, beside the baselines: evaluate RUN_DIR.",
    "compare": "Says which of two runs on text is better: compare RUN_A RUN_B.",
    "report": "Draws the figures and the report of a finished run again: report RUN_DIR.",
}

_calls = count()


def overview() -> str:
    """What ``maxmargin --help`` prints: LightningCLI's own help knows only the commands of a Trainer."""
    lines = [f"  {name:<11}{text}" for name, text in COMMANDS.items()]
    end = [
        "Start with: maxmargin fit --config joint/relaxed",
        "A config is a file, or the name of one that comes with the package, as above.",
        f"Classes of your own in a config or --data need {TRUST_FLAG}: naming one runs its module.",
        "More of each: maxmargin COMMAND --help; which version this is: maxmargin --version",
    ]
    return "\n".join(["usage: maxmargin COMMAND ...", "", ABOUT, "", *lines, "", *end])


def command() -> NoReturn:
    """``maxmargin`` as a process of its own, which ends with the status of ``main``."""
    with readers_may_go():
        status = main()
    end(status)


def end(status: int) -> NoReturn:
    """Ends this process with a command's status."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if status and distributed is not None and distributed.is_available() and distributed.is_initialized():
        # Ordinary ends destroy Gloo's threads while they wait for the process that is lost, and C++ says "terminate
        # called without an active exception" and dies of SIGABRT.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(args: Sequence[str] | None = None) -> int:
    """The command ``maxmargin``. Exit status 0, 1 (training failed or was interrupted) or 2 (bad input).

    A script may call it again and again. Where one of its runs has several processes, Lightning starts the others by
    the whole script: in them the calls before that run do nothing, and the process ends with it.

    Args:
        args: the words; those of the process where None.
    """
    call, launched = next(_calls), launched_call()
    if launched is None:
        os.environ[CALL_VARIABLE] = f"{os.getpid()}:{call}"
        try:
            return _main(args)
        finally:
            os.environ.pop(CALL_VARIABLE, None)
    if call < launched:
        return 0
    end(_main(args))


def launched_call() -> int | None:
    """Which call of :func:`main` a process was started for, by another one of the same script; None where by none."""
    owner, _, call = os.environ.get(CALL_VARIABLE, "").partition(":")
    return int(call) if owner == str(os.getppid()) and "LOCAL_RANK" in os.environ else None


def _main(args: Sequence[str] | None) -> int:
    argv, words = list(sys.argv[1:] if args is None else args), list(sys.argv)
    trusted = TRUST_FLAG in argv
    argv = [given for given in argv if given != TRUST_FLAG]
    try:
        return _run(argv, trusted)
    except KeyboardInterrupt:
        return _interrupted(argv)
    except SystemExit as stopped:
        # Lightning turns an interrupt before the first step into exit(1).
        return _interrupted(argv) if stopped.code == 1 else int(stopped.code or 0)
    except RankError as error:
        # One process of all has printed it.
        return error.status
    except (NonFiniteError, OutputError) as error:
        return _fail(str(error), 1)
    except OSError as error:
        from lightning_maxmargin.run.config_errors import of_own_code

        if error.errno == errno.ENAMETOOLONG and error.filename and not of_own_code(error):
            return _fail(f"{str(error.filename)[:40]!r}... is too long for the name of a file", 2)
        if error.errno not in OF_A_DISK or of_own_code(error):
            raise
        return _fail(f"{error.filename or 'a file'} cannot be used ({error.strerror}); mend that and go on", 1)
    except InputError as error:
        return _fail(str(error), 2)
    except (ArgumentError, TypeError, ValueError) as error:
        from lightning_maxmargin.run.config_errors import is_input, one_line

        if not is_input(error):
            raise
        return _fail(one_line(error, command=argv[0] if argv else "fit"), 2)
    finally:
        # Of the process: LightningCLI reads them there, and the next call may have none of its own.
        sys.argv[:] = words


def _run(argv: list[str], trusted: bool) -> int:
    """Runs the command; nothing is imported before it is needed."""
    if argv in ([word] for word in HELP):
        print(overview())
        return 0
    if argv == ["--version"]:
        print(f"maxmargin {__version__}")
        return 0
    if not argv or not (argv[0].startswith("-") or argv[0] in COMMANDS):
        message = f"{argv[0]} is no command" if argv else "a command is missing"
        raise InputError(f"{message}; one of {', '.join(COMMANDS)} (maxmargin --help)")
    command, rest = argv[0], with_files(argv[1:])
    if command in TRAINER_COMMANDS:
        rest = with_text(rest)
    if set(HELP) & set(rest):
        _print_help(command)
        return 0
    if command in TRAINER_COMMANDS:
        rest = ["--help" if word == FULL_HELP else word for word in rest]
    _quiet()
    from lightning_maxmargin.run.config_errors import imports_allowed

    with imports_allowed(trusted):
        return _run_command(command, rest, trusted)


def _run_command(command: str, rest: list[str], trusted: bool) -> int:
    if command == "report":
        return _report(rest)
    if command == "layers":
        with collected_later():
            from lightning_maxmargin.run.layers import layers

        layers(rest)
    elif command == "path":
        with collected_later():
            from lightning_maxmargin.paths.command import path

        path(rest)
    elif command == "reproduce":
        with collected_later():
            from lightning_maxmargin.reproduce.command import reproduce

        return reproduce(rest, trusted)
    elif command in ("evaluate", "compare"):
        return _text_command(command, rest)
    else:
        with collected_later():
            from lightning_maxmargin.run.lightning_cli import run_trainer

        # LightningCLI reads sys.argv itself, also in the processes that a launcher starts with the same argv.
        sys.argv[1:] = [command, *rest]
        run_trainer({"description": ABOUT}, TRAINER_COMMANDS, [TRUST_FLAG] if trusted else [])
    return 0


def _print_help(command: str) -> None:
    if command in TRAINER_COMMANDS:
        from lightning_maxmargin.run.trainer_help import trainer_help

        print(trainer_help(command, TRAINER_COMMANDS[command], f"maxmargin {command} {FULL_HELP}"), end="")
        return
    from lightning_maxmargin.run import parsers

    getattr(parsers, f"{command}_parser")().print_help()


def _report(args: list[str]) -> int:
    from lightning_maxmargin.run.parsers import report_parser

    run_dir = Path(report_parser().parse_args(args).run_dir)
    with collected_later():
        from lightning_maxmargin.figures.report import write_report

    print(write_report(run_dir))
    return 0


def _text_command(command: str, args: list[str]) -> int:
    from lightning_maxmargin.run import parsers
    from lightning_maxmargin.text.packages import require_text_extra

    require_text_extra("transformers")
    if command == "compare":
        with collected_later():
            from lightning_maxmargin.figures.compare_page import write_comparison
            from lightning_maxmargin.text.compare import compare

        return compare(parsers.compare_parser().parse_args(args), write_comparison)
    with collected_later():
        from lightning_maxmargin.text.evaluate import evaluate

    return evaluate(parsers.evaluate_parser().parse_args(args))


def _interrupted(argv: Sequence[str]) -> int:
    if argv[:1] != ["fit"]:
        return _fail("interrupted; run the command again", 1)
    run_dir = Path(os.environ.get(RUN_DIR_VARIABLE, "."))
    if not (run_dir / "checkpoints" / "last.ckpt").is_file():
        return _fail("interrupted before there was a checkpoint; run the command again", 1)
    resume = f"maxmargin fit --config {run_dir}/config.yaml --run_dir {run_dir} --ckpt_path last"
    return _fail(f"interrupted; go on with: {resume}", 1)


def _fail(message: str, status: int) -> int:
    print(f"maxmargin: error: {message}", file=sys.stderr)
    return status


def _quiet() -> None:
    """Lightning's advertisements and its advice on loaders are not for these runs."""
    # A process that has gone makes torch print a page of C++ frames in every other one; read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    silence_runs()
