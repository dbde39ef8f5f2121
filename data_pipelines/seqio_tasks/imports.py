"""seqio and TensorFlow, imported in silence.

Before logging is set up, TensorFlow's C++ writes about what is no error straight to the process's
standard error; an import or a call within ``silence`` does not. What Python raises is not touched.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it says later


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discards what is written to file descriptor 2 meanwhile."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


with silence():
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

__all__ = ["seqio", "silence", "tf"]
