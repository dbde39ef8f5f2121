"""The section about the validation loss of each language-script."""

import statistics
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 20  # on the page

_TITLE = "Validation loss by language"

_NATS = "nats per masked token"


def section(results: RunResults) -> Section:
    """Returns the loss of each language-script, beside that of a unigram model of it."""
    command = results.evaluate_command("mlm", "--data STORE")
    fields = ("loss", "languages.*.language", "languages.*.loss")
    evaluation = results.evaluation("mlm", *fields)
    if evaluation is None:
        return _validation_of_metrics(results, command)
    step = evaluation.get("step")
    measured = "" if step is None else f"Measured at step {step:,}. "
    if "unigram_loss" not in evaluation:  # of an older version
        losses = {record["language"]: record["loss"] for record in evaluation["languages"]}
        text = f"{measured}{results.head_means} What unigrams give comes with this command."
        return _losses_alone(results, losses, "On every validation row.", text, command)
    results.evaluation("mlm", "languages.*.unigram_loss")
    records = [
        {
            **results.identify(record["language"]),
            "value": record["loss"],
            "reference": record["unigram_loss"],
        }
        for record in evaluation["languages"]
        if record["loss"] is not None and record["unigram_loss"] is not None
    ]
    records.sort(key=lambda record: (record["value"], record["language"]))
    titles = {"value": "validation loss", "reference": "unigram loss"}
    if not records:
        return Section("validation", _TITLE, command=command)
    best, worst = records[0], records[-1]
    alt = (
        f"Validation loss of {len(records)} language-scripts, from {best['language']} "
        f"{best['value']:.2f} to {worst['language']} {worst['value']:.2f} nats."
    )
    figures = [
        Figure(
            "validation-loss",
            "Loss of each language-script",
            "Large marks: the model. Small grey diamonds: a model that knows the language, and how "
            "often each token occurs in its training text, predicting the same tokens.",
            alt,
            _columns(records, titles),
            charts.by_language(records, _NATS, ".3~f", titles),
        ),
        Figure(
            "loss-against-unigrams",
            "Loss against unigram loss",
            "Below the dashed line, the model has learned more than how often each token occurs in "
            "a language.",
            f"Loss over unigram loss of {len(records)} language-scripts; "
            f"{sum(r['value'] < r['reference'] for r in records)} are below the diagonal.",
            _columns(records, titles),
            charts.against(records, "unigram loss (nats)", "validation loss (nats)", ".3f"),
        ),
    ]
    tables = [_loss_by_group(records), _loss_of_each(records)]
    loss, baseline = evaluation["loss"], evaluation["unigram_loss"]
    side = "below" if loss < baseline else "above"
    text = (
        f"{measured}All targets together: {loss:.3f} nats, {abs(baseline - loss):.3f} {side} the "
        f"unigram loss of {baseline:.3f}. {results.head_means}"
    )
    return Section("validation", _TITLE, text, figures, tables)


def _validation_of_metrics(results: RunResults, command: str) -> Section:
    prefix = "eval/loss/"
    lines = [line for line in results.metrics if "eval/loss" in line]
    last = lines[-1] if lines else {}
    losses = {key.removeprefix(prefix): v for key, v in last.items() if key.startswith(prefix)}
    if not losses:
        return Section("validation", _TITLE, command=command)
    text = (
        f"Measured at step {last['step']:,} of the training. {results.head_means} "
        "All validation rows, and what unigrams give, come with this command."
    )
    caption = "As measured during training, on the first rows of each language-script."
    return _losses_alone(results, losses, caption, text, command)


def _losses_alone(
    results: RunResults, losses: dict[str, float | None], caption: str, text: str, command: str
) -> Section:
    """Returns the losses without a baseline, and the command that measures both."""
    records = [
        {**results.identify(name), "value": loss}
        for name, loss in losses.items()
        if loss is not None
    ]
    records.sort(key=lambda record: (record["value"], record["language"]))
    titles = {"value": "validation loss"}
    figure = Figure(
        "validation-loss",
        "Loss of each language-script",
        caption,
        f"Validation loss of {len(records)} language-scripts.",
        _columns(records, titles),
        charts.by_language(records, _NATS, ".3~f", titles),
    )
    return Section("validation", _TITLE, text, [figure], [_loss_of_each(records)], command)


def _columns(records: list[dict[str, Any]], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Returns records with the fields of a chart by their titles."""
    return [{titles.get(key, key): value for key, value in record.items()} for record in records]


def _loss_by_group(records: list[dict[str, Any]]) -> Table:
    rows = []
    for group in ("all", "head", "tail"):
        chosen = [r for r in records if group in ("all", r["group"])]
        if chosen:
            loss, unigram = (statistics.mean(r[k] for r in chosen) for k in ("value", "reference"))
            rows.append(
                [
                    group,
                    str(len(chosen)),
                    format_number(loss),
                    format_number(unigram),
                    format_number(unigram - loss),
                ]
            )
    headers = ["group", "language-scripts", "loss", "unigram loss", "below"]
    return Table("Unweighted means over language-scripts", headers, rows)


def _loss_of_each(records: list[dict[str, Any]]) -> Table:
    headers = ["language", "name", "group", "loss", "unigram loss", "below"]
    rows = []
    for record in records:
        loss, unigram = record["value"], record.get("reference")
        numbers = (loss, unigram, None if unigram is None else unigram - loss)
        rows.append([*(record[k] for k in headers[:3]), *map(format_number, numbers)])
    return Table("Every language-script", headers, rows, folded=True)
