"""The section about the mixture: the rates, and the shares that were really drawn."""

import numpy as np

from langsamp_jax.data.manifest import Counts, Manifest
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.sampling import INFINITE
from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section, Table
from langsamp_jax.report.run_results import RunResults

POSITION = 30  # on the page


def section(results: RunResults) -> Section:
    """Returns the rates, and the shares that were really drawn."""
    run, title = results.run, "The mixture, and what was drawn"
    if run.rows is None:  # started by a version that did not write them down
        command = f"langsamp mixture --data STORE --gin_file {results.path_argument}/config.gin"
        return Section("mixture", title, command=command)
    names, drawn, rate = _drawn(results)
    rows = np.array([run.rows[name] for name in names])
    stream = bool((rows == INFINITE).any())
    shares = {} if stream else {"rows of the store": rows / rows.sum()}
    shares["rate p"] = rate
    if results.step:
        shares["drawn"] = drawn / drawn.sum()
    order = np.lexsort((names, -rate, 0 * rows if stream else -rows))
    records = [
        {**results.identify(names[at]), "series": series, "share": float(share[at])}
        for at in order
        for series, share in shares.items()
    ]
    off = float(np.abs(drawn - rate * drawn.sum()).max())
    alt = (
        f"Shares of {len(names)} language-scripts; no count is further than {off:.1f} rows from p."
    )
    figure = Figure(
        "mixture",
        "Rate and share of each language-script",
        "Cross on circle: drawn as often as the mixture says. A diamond with a smaller share than "
        "they is a language-script that is drawn more often than its size alone would have it.",
        alt,
        records,
        charts.shares(records),
    )
    text = (
        f"Up to step {results.step:,}, {drawn.sum():,} rows were drawn; no language-script is "
        f"further than {off:.2f} rows from its rate."
        if results.step
        else "Nothing has been drawn yet."
    )
    headers = ["language", "rows", "tokens", "rate p", "rows drawn", "share drawn", "epochs"]
    table = Table(
        "Every language-script",
        headers,
        [
            [
                names[at],
                "stream" if stream else f"{rows[at]:,}",
                f"{run.tokens[names[at]]:,}",
                f"{rate[at]:.3%}",
                f"{drawn[at]:,}",
                f"{drawn[at] / max(1, drawn.sum()):.3%}",
                "–" if stream else f"{drawn[at] / max(1, rows[at]):.2f}",
            ]
            for at in order
        ],
        folded=True,
    )
    return Section("mixture", title, text, [figure], [table])


def _drawn(results: RunResults) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the language-scripts, the rows drawn of each, and their mean rates until then."""
    run = results.run
    counts = {n: Counts(run.lines[n], run.tokens[n], 0, run.rows[n]) for n in run.tokens}
    manifest = Manifest(
        run.sequence_length, run.tokenizer.vocabulary, "", {"train": counts}, {}, {}
    )
    seed, *plan = (run.settings[f"train.{k}"] for k in ("seed", "num_steps", "global_batch_size"))
    sampler = run.config(MixtureConfig).sampler(manifest, seed, *plan)
    until = results.step * plan[1]
    edges = np.minimum([*sampler.starts, max(until, 1)], max(until, 1))
    rates = np.array([allocation.rates for allocation in sampler.allocations])
    return list(manifest.names), sampler.drawn(until), np.diff(edges) @ rates / max(until, 1)
