"""The ``langsamp`` command, from what was typed to the exit code."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from langsamp_jax import __version__
from langsamp_jax.cli import evaluation, inspect, results, settings, text, train
from langsamp_jax.cli.parser import GIN_HINT, Parser, add_verb
from langsamp_jax.errors import UserError, bad_jax_variable, out_of_memory
from langsamp_jax.hardware.compilation_cache import keep_compiled
from langsamp_jax.io.storage import local, require_reachable, storage_failure
from langsamp_jax.parallel.signals import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, or what ``exit_status`` says."""
    _open_standard_streams()
    keep_compiled()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA prints pages about what it raises
    try:
        args, rest = parser().parse_known_args(argv)
        with _processes(args):
            require_reachable(vars(args).values())
            _read_gin(args, rest)
            args.call(args)
            sys.stdout.flush()
    except BaseException as error:
        if (status := exit_status(error)) is None:
            raise
        code, line = status
        if line:
            print(f"langsamp: {line}", file=sys.stderr)
        return code
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command; what it parses has the verb's function ``call``."""
    langsamp = Parser(
        prog="langsamp", description="Multilingual encoder pretraining in JAX.", allow_abbrev=False
    )
    langsamp.add_argument("--version", action="version", version=f"langsamp {__version__}")
    commands = langsamp.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_demo(commands)
    for family in (text, inspect, settings, train, evaluation, results):
        family.add(commands)
    return langsamp


def exit_status(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit code and what is said; None for a defect of ours, which keeps its traceback.

    75 (``EX_TEMPFAIL``) after SIGTERM, which saves: the same command goes on from there; 130 after
    Ctrl-C; 2 for what the user can mend; 141 where nobody reads on.
    """
    if isinstance(error, Stopped):
        return (os.EX_TEMPFAIL if error.number == signal.SIGTERM else 130), str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, UserError):
        return 2, _one_line(str(error))
    if isinstance(error, BrokenPipeError):  # the reader has had enough: langsamp inspect ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush
        return 128 + signal.SIGPIPE, ""
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return 2, _one_line(f"the disk is full: {error.filename or 'output'}: {error.strerror}")
        return 2, _one_line(str(error))
    if isinstance(error, Exception):
        line = out_of_memory(error) or storage_failure(error) or bad_jax_variable(error)
        return (2, line) if line else None
    return None


def _open_standard_streams() -> None:
    """Opens what the caller has closed: a file of ours would get its number, and what is printed.

    Letters that a terminal's encoding lacks are printed as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _add_demo(commands: argparse._SubParsersAction) -> None:
    verb = add_verb(
        commands, "demo", _demo, "everything, on a synthetic corpus", "--output demo_output"
    )
    verb.add_argument("--output", type=local, default=Path("demo_output"), metavar="DIR")
    verb.set_defaults(gin_file=["demo.gin"])
    verb.epilog += GIN_HINT


def _demo(args: argparse.Namespace) -> None:
    from langsamp_jax.cli.demo import demo
    from langsamp_jax.training.config import configs_from_gin

    demo(args.output, configs_from_gin())


def _processes(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Returns the block that several processes of the same work enter and leave together."""
    if not hasattr(args, "coordinator") or args.dry_run:
        return contextlib.nullcontext()
    from langsamp_jax.parallel.distributed import cluster_session, find_cluster

    given = args.coordinator, args.num_processes, args.process_id
    return cluster_session(
        find_cluster(*given, args.start_timeout), args.start_timeout, exit_status
    )


def _read_gin(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Reads the gin files and ``--gin.NAME=VALUE`` arguments of the verbs that take gin.

    Raises:
      UserError: an argument that no verb knows; what ``parse_gin`` refuses.
    """
    takes_gin = hasattr(args, "gin_file")
    for argument in rest:
        if not (takes_gin and argument.startswith("--gin.")):
            raise UserError(f"unknown argument {argument}")
    if takes_gin:
        from langsamp_jax.config import parse_gin

        settings.import_configs()
        # Later lines win: the gin files, then the sizes of the weights, then what was typed.
        typed = [line.removeprefix("--gin.") for line in rest]
        parse_gin(args.gin_file, [*_sizes(args), *typed])


def _sizes(args: argparse.Namespace) -> list[str]:
    if not hasattr(args, "init_from"):
        return []
    from langsamp_jax.training.resume import model_sizes

    sizes = model_sizes(args.output, args.init_from)
    return [f"{name}={value!r}" for name, value in sizes.items()]
