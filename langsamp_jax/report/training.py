"""The parts of the page about the run itself: curves, validation, mixture, configuration."""

import datetime
import shlex
import statistics
from typing import Any

import numpy as np

from langsamp_jax import __version__
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.sampling import INFINITE
from langsamp_jax.data.store import Counts, Manifest
from langsamp_jax.languages.inventory import language_name
from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

_POINTS = 600  # the most of a curve; of more, neighbours are averaged
_PHASES = ("step", "input", "validation", "checkpoint")
_CURVES = (  # title, title of the values, format, from zero, series and their keys, caption
    (
        "Loss",
        "cross-entropy (nats)",
        ".3~f",
        False,
        {"training": "train/loss", "validation": "eval/loss"},
        "Lower is better. Validation is on rows held out from training, with masks that never "
        "change.",
    ),
    (
        "Throughput",
        "tokens per second",
        ".3~s",
        True,
        {"with padding": "tokens_per_second", "without padding": "real_tokens_per_second"},
        "Over the time of input and steps; validation and checkpoints are not counted.",
    ),
    (
        "Model FLOPs utilisation",
        "share of the peak",
        ".1%",
        True,
        {"MFU": "mfu"},
        "Useful FLOPs over what the devices could do at their bf16 peak.",
    ),
    ("Learning rate", "rate", ".2~g", True, {"rate": "learning_rate"}, "Of each update."),
)


def curves(evidence: RunResults) -> Section:
    """Loss, speed and time over the steps."""
    found = [_curve(evidence, *of) for of in _CURVES] + [_step_time(evidence)]
    figures = [figure for figure in found if figure]
    command = "" if figures else f"langsamp train --output {path(evidence)} ..."
    return Section("training", "Training", figures=figures, command=command)


def _curve(
    evidence: RunResults,
    title: str,
    y: str,
    form: str,
    zero: bool,
    series: dict[str, str],
    caption: str,
) -> Figure | None:
    records, averaged = _series(evidence, series)
    if not records:
        return None
    last = {record["series"]: record["value"] for record in records}
    ends = ", ".join(f"{label} {value:.4g}" for label, value in last.items())
    alt = f"{title} over {evidence.step:,} steps; at the end: {ends}."
    chart = charts.curves(records, "step", y, form, zero)
    name = title.lower().replace(" ", "-")
    return Figure(name, title, caption + averaged, alt, records, chart)


def _step_time(evidence: RunResults) -> Figure | None:
    records, averaged = _series(evidence, {phase: f"time/{phase}" for phase in _PHASES})
    if not records:
        return None
    seconds = {phase: [r["value"] for r in records if r["series"] == phase] for phase in _PHASES}
    means = [f"{phase} {statistics.mean(each):.3g}" for phase, each in seconds.items() if each]
    return Figure(
        "step-time",
        "Where the time of a step goes",
        "Step: dispatching, or waiting for the device. Input: waiting for a batch. Validation and "
        f"checkpoints: the loop stands still; their time is spread over the steps.{averaged}",
        f"Seconds a step, on average: {', '.join(means)}.",
        records,
        charts.stacked(records, "step", "seconds a step"),
    )


def validation(evidence: RunResults) -> Section:
    """The loss of each language-script, beside what unigram frequencies give."""
    command = evaluate("mlm", "--data STORE", evidence)
    found = evidence.evaluations.get("mlm")
    if found is None:
        return _validation_of_metrics(evidence, command)
    records = [
        {
            **_identity(evidence, each["language"]),
            "value": each["loss"],
            "reference": each["unigram_entropy"],
        }
        for each in found["languages"]
        if each["loss"] is not None and each["unigram_entropy"] is not None
    ]
    records.sort(key=lambda record: (record["value"], record["language"]))
    titles = {"value": "validation loss", "reference": "unigram entropy"}
    nats = "nats per masked token"
    if not records:
        return Section("validation", "Validation loss by language", command=command)
    best, worst = records[0], records[-1]
    alt = (
        f"Validation loss of {len(records)} language-scripts, from {best['language']} "
        f"{best['value']:.2f} to {worst['language']} {worst['value']:.2f} nats."
    )
    figures = [
        Figure(
            "validation-loss",
            "Loss of each language-script",
            "Large marks: the model. Small grey diamonds: the entropy of the same tokens under "
            "their own frequencies, which is what knowing nothing but the words would give.",
            alt,
            _columns(records, titles),
            charts.by_language(records, nats, ".3~f", titles),
        ),
        Figure(
            "loss-against-entropy",
            "Loss against unigram entropy",
            "Below the dashed line, the model has learned more than how often each piece occurs.",
            f"Loss over unigram entropy of {len(records)} language-scripts; "
            f"{sum(r['value'] < r['reference'] for r in records)} are below the diagonal.",
            _columns(records, titles),
            charts.against(records, "unigram entropy (nats)", "validation loss (nats)"),
        ),
    ]
    tables = [_loss_by_group(records), _loss_of_each(records)]
    measured = "" if found.get("step") is None else f"Measured at step {found['step']:,}. "
    text = (
        f"{measured}All targets together: {found['loss']:.3f} nats; their unigram entropy, the "
        f"language unknown, is {found['unigram_entropy']:.3f}. {evidence.head_means}"
    )
    return Section("validation", "Validation loss by language", text, figures, tables)


def _validation_of_metrics(evidence: RunResults, command: str) -> Section:
    title, prefix = "Validation loss by language", "eval/loss/"
    lines = [line for line in evidence.metrics if "eval/loss" in line]
    last = lines[-1] if lines else {}
    losses = {key.removeprefix(prefix): v for key, v in last.items() if key.startswith(prefix)}
    if not losses:
        return Section("validation", title, command=command)
    records = [{**_identity(evidence, name), "value": loss} for name, loss in losses.items()]
    records.sort(key=lambda record: (record["value"], record["language"]))
    titles = {"value": "validation loss"}
    figure = Figure(
        "validation-loss",
        "Loss of each language-script",
        "As measured during training, on the first rows of each language-script.",
        f"Validation loss of {len(records)} language-scripts.",
        _columns(records, titles),
        charts.by_language(records, "nats per masked token", ".3~f", titles),
    )
    text = (
        f"Measured at step {last['step']:,} of the training. {evidence.head_means} "
        "All validation rows, and what unigram frequencies give, come with this command."
    )
    return Section("validation", title, text, [figure], [_loss_of_each(records)], command)


def mixture(evidence: RunResults) -> Section:
    """The rates, and the shares that were really drawn."""
    run, title = evidence.run, "The mixture, and what was drawn"
    if run.rows is None:  # started by a version that did not write them down
        command = f"langsamp mixture --data STORE --gin_file {path(evidence)}/config.gin"
        return Section("mixture", title, command=command)
    names, drawn, rate = _drawn(evidence)
    rows = np.array([run.rows[name] for name in names])
    stream = bool((rows == INFINITE).any())
    shares = {} if stream else {"rows of the store": rows / rows.sum()}
    shares["rate p"] = rate
    if evidence.step:
        shares["drawn"] = drawn / drawn.sum()
    order = np.lexsort((names, -rate, 0 * rows if stream else -rows))
    records = [
        {**_identity(evidence, names[at]), "series": series, "share": float(share[at])}
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
        "Cross on circle: drawn as often as the mixture says. A diamond to the left of them is a "
        "language-script that is drawn more often than its size alone would have it.",
        alt,
        records,
        charts.shares(records),
    )
    text = (
        f"Up to step {evidence.step:,}, {drawn.sum():,} rows were drawn; no language-script is "
        f"further than {off:.2f} rows from its rate."
        if evidence.step
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


def _drawn(evidence: RunResults) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The language-scripts, how many rows of each were drawn, and their mean rates until then."""
    run = evidence.run
    counts = {n: Counts(run.lines[n], run.tokens[n], 0, run.rows[n]) for n in run.tokens}
    manifest = Manifest(
        run.sequence_length, run.tokenizer.vocabulary, "", {"train": counts}, {}, {}
    )
    seed, *plan = (run.settings[f"train.{k}"] for k in ("seed", "num_steps", "global_batch_size"))
    sampler = run.config(MixtureConfig).sampler(manifest, seed, *plan)
    until = evidence.step * plan[1]
    edges = np.minimum([*sampler.starts, max(until, 1)], max(until, 1))
    rates = np.array([allocation.rates for allocation in sampler.allocations])
    return list(manifest.names), sampler.drawn(until), np.diff(edges) @ rates / max(until, 1)


def configuration(evidence: RunResults) -> Section:
    """Every setting, and the command that starts such a run again."""
    run = evidence.run
    began = datetime.datetime.fromtimestamp(run.started, datetime.UTC)
    start = run.settings.get("init_from")
    again = f"langsamp train --gin_file {path(evidence)}/config.gin --data STORE --output OTHER_RUN"
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


def path(evidence: RunResults) -> str:
    """The run as a word of a command line."""
    return shlex.quote(str(evidence.run.path))


def evaluate(task: str, data: str, evidence: RunResults) -> str:
    """The command that measures what is missing."""
    return f"langsamp evaluate {task} --model {shlex.quote(str(evidence.run.path))} {data}"


def _series(evidence: RunResults, keys: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """The points of each series, and a sentence where neighbours have been averaged."""
    records, together = [], 1
    for series, key in keys.items():
        points = evidence.column(key)
        many = -(-len(points) // _POINTS)
        together = max(together, many)
        for start in range(0, len(points), max(1, many)):
            steps, values = zip(*points[start : start + many], strict=True)
            mean = statistics.mean(values)
            records.append({"step": steps[-1], "series": series, "value": mean})
    return records, f" A point is the mean of {together} log lines." if together > 1 else ""


def _identity(evidence: RunResults, name: str) -> dict[str, str]:
    return {"language": name, "name": language_name(name), "group": evidence.group(name)}


def _columns(records: list[dict[str, Any]], titles: dict[str, str]) -> list[dict[str, Any]]:
    """With the fields of a chart by their titles."""
    return [{titles.get(key, key): value for key, value in record.items()} for record in records]


def _loss_by_group(records: list[dict[str, Any]]) -> Table:
    rows = []
    for group in ("all", "head", "tail"):
        of = [r for r in records if group in ("all", r["group"])]
        if of:
            loss, entropy = (statistics.mean(r[k] for r in of) for k in ("value", "reference"))
            rows.append(
                [
                    group,
                    str(len(of)),
                    format_number(loss),
                    format_number(entropy),
                    format_number(entropy - loss),
                ]
            )
    headers = ["group", "language-scripts", "loss", "unigram entropy", "below by"]
    return Table("Unweighted means over language-scripts", headers, rows)


def _loss_of_each(records: list[dict[str, Any]]) -> Table:
    rows = [
        [
            r["language"],
            r["name"],
            r["group"],
            format_number(r["value"]),
            format_number(r.get("reference")),
        ]
        for r in records
    ]
    headers = ["language", "name", "group", "loss", "unigram entropy"]
    return Table("Every language-script", headers, rows, folded=True)
