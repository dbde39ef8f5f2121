"""How the command ends: the exit code and the one line of every exception that is no defect."""

import errno
import os
import signal
import sys

from langsamp_jax.errors import UserError, out_of_memory
from langsamp_jax.io.storage import storage_failure
from langsamp_jax.parallel.signals import Stopped


def exit_status(error: BaseException) -> tuple[int, str] | None:
    """The exit code and what is said, or None for a defect of ours, which keeps its traceback.

    75 (``EX_TEMPFAIL``) after SIGTERM, which saves: the same command goes on from there; 130 after
    Ctrl-C; 2 for what the user can mend; 141 where nobody reads on.
    """
    if isinstance(error, Stopped):
        return (os.EX_TEMPFAIL if error.number == signal.SIGTERM else 130), str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, UserError):
        return 2, _one_line(str(error).partition("\n  In call to configurable")[0])  # gin's
    if isinstance(error, BrokenPipeError):  # the reader has had enough: langsamp inspect ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush
        return 128 + signal.SIGPIPE, ""
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return 2, _one_line(f"the disk is full: {error.filename}: {error.strerror}")
        return 2, _one_line(str(error))
    if isinstance(error, Exception) and (line := out_of_memory(error) or storage_failure(error)):
        return 2, line
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
