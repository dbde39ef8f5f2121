"""The ``langsamp`` command, from what was typed to the exit code. ``verbs.py`` does the work."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from langsamp_jax.cli.exit_status import exit_status
from langsamp_jax.cli.parser import parser
from langsamp_jax.errors import UserError
from langsamp_jax.hardware.compilation_cache import keep_compiled
from langsamp_jax.io.storage import require_reachable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
      the exit code: 0, or what ``exit_status`` says.
    """
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
        if (known := exit_status(error)) is None:
            raise
        code, line = known
        if line:
            print(f"langsamp: {line}", file=sys.stderr)
        return code
    return 0


def _processes(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Where several processes do the same work: a block that they enter and leave together."""
    if not hasattr(args, "coordinator") or args.dry_run:
        return contextlib.nullcontext()
    from langsamp_jax.parallel.distributed import cluster_session, find_cluster

    given = args.coordinator, args.num_processes, args.process_id
    return cluster_session(
        find_cluster(*given, args.start_timeout), args.start_timeout, exit_status
    )


def _read_gin(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Takes the ``--gin.NAME=VALUE`` arguments, for the verbs that know gin."""
    takes_gin = hasattr(args, "gin_file")
    for argument in rest:
        if not (takes_gin and argument.startswith("--gin.")):
            raise UserError(f"unknown argument {argument}")
    if takes_gin:
        # Every config is registered by its definition.
        import langsamp_jax.evaluation.finetune  # noqa: F401
        import langsamp_jax.training.loop  # noqa: F401
        from langsamp_jax.config import parse_gin

        # Later lines win: the gin files, then the sizes of the weights, then what was typed.
        sizes = _sizes(getattr(args, "init_from", None))
        parse_gin(args.gin_file, [*sizes, *(line.removeprefix("--gin.") for line in rest)])


def _sizes(init_from: Path | None) -> list[str]:
    if init_from is None:
        return []
    from langsamp_jax.huggingface.pretrained import read_config

    return [f"model.{field}={value!r}" for field, value in read_config(init_from)[1].items()]
