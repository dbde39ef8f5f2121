"""The section about the validation loss of each language-script."""

import statistics
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 20  # on the page


def section(results: RunResults) -> Section:
    """Returns the loss of each language-script, beside what unigram frequencies give."""
    command = results.evaluate_command("mlm", "--data STORE")
    language_fields = ("language", "loss", "unigram_entropy")
    fields = ("loss", "unigram_entropy", *(f"languages.*.{field}" for field in language_fields))
    evaluation = results.evaluation("mlm", *fields)
    if evaluation is None:
        return _validation_of_metrics(results, command)
    records = [
        {
            **results.identify(record["language"]),
            "value": record["loss"],
            "reference": record["unigram_entropy"],
        }
        for record in evaluation["languages"]
        if record["loss"] is not None and record["unigram_entropy"] is not None
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
    loss, entropy, step = (evaluation.get(key) for key in ("loss", "unigram_entropy", "step"))
    measured = "" if step is None else f"Measured at step {step:,}. "
    text = (
        f"{measured}All targets together: {loss:.3f} nats; their unigram entropy, the language "
        f"unknown, is {entropy:.3f}. {results.head_means}"
    )
    return Section("validation", "Validation loss by language", text, figures, tables)


def _validation_of_metrics(results: RunResults, command: str) -> Section:
    title, prefix = "Validation loss by language", "eval/loss/"
    lines = [line for line in results.metrics if "eval/loss" in line]
    last = lines[-1] if lines else {}
    losses = {key.removeprefix(prefix): v for key, v in last.items() if key.startswith(prefix)}
    if not losses:
        return Section("validation", title, command=command)
    records = [{**results.identify(name), "value": loss} for name, loss in losses.items()]
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
        f"Measured at step {last['step']:,} of the training. {results.head_means} "
        "All validation rows, and what unigram frequencies give, come with this command."
    )
    return Section("validation", title, text, [figure], [_loss_of_each(records)], command)


def _columns(records: list[dict[str, Any]], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Returns records with the fields of a chart by their titles."""
    return [{titles.get(key, key): value for key, value in record.items()} for record in records]


def _loss_by_group(records: list[dict[str, Any]]) -> Table:
    rows = []
    for group in ("all", "head", "tail"):
        chosen = [r for r in records if group in ("all", r["group"])]
        if chosen:
            loss, entropy = (statistics.mean(r[k] for r in chosen) for k in ("value", "reference"))
            rows.append(
                [
                    group,
                    str(len(chosen)),
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
