"""The section about the configuration: every setting, and how to start such a run again."""

import datetime
import shlex

from langsamp_jax import __version__
from langsamp_jax.report.figures import Section, Table
from langsamp_jax.report.run_results import RunResults

POSITION = 90  # on the page


def section(results: RunResults) -> Section:
    """Returns every setting, and the command that starts such a run again."""
    run = results.run
    began = datetime.datetime.fromtimestamp(run.started, datetime.UTC)
    start = run.settings.get("init_from")
    again = f"langsamp train --gin_file {results.path_argument}/config.gin"
    again += " --data STORE --output OTHER_RUN"
    again += f" --init_from {shlex.quote(start)}" if start else ""
    facts = [
        ["run id", run.id],
        ["started", f"{began:%Y-%m-%d %H:%M} UTC"],
        ["store", run.store],
        ["tokenizer", run.tokenizer.fingerprint],
        ["row length", f"{run.sequence_length} tokens"],
        ["report by", f"langsamp {__version__}"],
    ]
    settings = [[name, repr(value)] for name, value in sorted(run.settings.items())]
    return Section(
        "configuration",
        "Configuration",
        "With the store that has the fingerprint below, this gives the same batches in the same "
        "order.",
        command=again,
        tables=[
            Table("The run", ["", "value"], facts, words=True),
            Table("Every setting", ["setting", "value"], settings, folded=True, words=True),
        ],
    )
