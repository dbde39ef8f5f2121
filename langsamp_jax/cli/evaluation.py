"""``langsamp evaluate``: the table of its tasks, and what it does with any of them.

A new task is a protocol (see ``evaluation/jobs.py``) and a row of this table.
"""

import argparse
import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from langsamp_jax.cli.parser import add_actions, add_edits, add_gin, add_verb, refuse
from langsamp_jax.io.storage import local, location


class Argument:
    """An argument that can be typed: what ``add_argument`` takes.

    Attributes:
      option: what the protocol calls it.
      names_result: whether a result of another value than the default has a file of its own.
    """

    def __init__(self, flag: str, names_result: bool = False, **settings: Any):
        self.flag, self.names_result, self.settings = flag, names_result, settings
        self.option = settings.get("dest", flag.removeprefix("--"))


class Task(NamedTuple):
    """A task of ``langsamp evaluate``.

    Attributes:
      module: of its protocol, below ``langsamp_jax``. It is a string, because what it imports
        takes seconds: only the task that runs is imported.
      example: what the help shows behind ``--model run``.
      data: what the help calls ``--data``; None: there is none.
      arguments: for those options of the protocol that can be typed.
      options: those that follow from the name of the task.
      finetune: whether there is the option ``config``, a ``FineTuneConfig`` from gin.
      reference: whether there is the option ``reference``, a folder of text for means.
      model: what the help calls ``--model``.
    """

    name: str
    module: str
    summary: str
    example: str
    data: str | None
    arguments: tuple[Argument, ...] = ()
    options: Mapping[str, Any] = {}
    finetune: bool = False
    reference: bool = False
    model: str = "RUN_OR_HF_DIR"


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def _step(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, or all")
    return text if text == "all" else int(text)


def _layer(text: str) -> int | str | None:
    if text in ("last", "protocol"):
        return None if text == "protocol" else text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, last or protocol")
    return int(text)


def _language_script(flag: str, meaning: str) -> Argument:
    return Argument(flag, default="eng_Latn", help=f"{meaning} (default eng_Latn)")


_REFERENCES = Argument(
    "--references",
    type=local,
    nargs="+",
    default=[],
    metavar="FILE",
    help="distances between languages: URIEL vectors as .npz, world.json of a synthetic corpus",
)
_LAYER = Argument(
    "--layer",
    names_result=True,
    type=_layer,
    metavar="N|last|protocol",
    help="whose states are compared; 0 is the embeddings (default protocol: two thirds up). "
    "Another layer's result goes to TASK-layer-N.json",
)
_PARTS = ("attention", "ffn", "block", "all", "tables", "head", "norm", "run")
_ABLATION_TASKS = ("mlm", "retrieval-bible", "retrieval-tatoeba", "neutrality", "taxi1500",
                   "sib200", "ner", "pos")  # fmt: skip
_sentences = functools.partial(Argument, "--sentences", type=_count, metavar="N")


def _retrieval(name: str, what: str, example: str) -> Task:
    pivot = _language_script("--pivot", "language-script of the queries")
    summary = f"sentence retrieval on {what}"
    arguments = (pivot, _LAYER)
    return Task(name, "evaluation.retrieval", summary, example, "DIR", arguments, {"task": name})


def _transfer(name: str, what: str) -> Task:
    return Task(
        name,
        "evaluation.transfer",
        f"fine-tune on one language, test on all: {what}",
        f"--data {name} --gin.finetune.num_seeds=1",
        "DIR",
        (_language_script("--source", "language-script to train on"),),
        {"task": name},
        finetune=True,
    )


_ROWS = (
    Task(
        "mlm",
        "evaluation.loss",
        "masked-LM loss per language",
        "--data store",
        "STORE",
        model="RUN",
    ),
    _retrieval("retrieval-tatoeba", "pairs of files in the layout of Tatoeba", "--data tatoeba"),
    _retrieval("retrieval-bible", "line-aligned text, as Bibles", "--data corpus --pivot eng_Latn"),
    _transfer("taxi1500", "6 topics of Bible verses"),
    _transfer("sib200", "7 topics of FLORES sentences"),
    _transfer("ner", "named entities, WikiANN or UNER"),
    _transfer("pos", "parts of speech, Universal Dependencies"),
    Task(
        "pseudo-perplexity",
        "evaluation.pseudo_perplexity",
        "how well each token of a text is predicted from all others",
        "--data corpus",
        "CORPUS",
        (_sentences(default=100, help="of each language (default 100)"),),
    ),
    Task(
        "neutrality",
        "analysis.neutrality",
        "how alike translations are, beyond how alike all sentences are",
        "--data corpus",
        "CORPUS",
        (
            _language_script("--pivot", "whose lines the others translate"),
            _sentences(help="the first N lines (default: all)"),
        ),
    ),
    Task(
        "concepts",
        "neurons.concepts",
        "whether two languages have the same neurons for a concept",
        "--data corpus",
        "CORPUS",
        (
            _language_script("--pivot", "whose words are the concepts of real text"),
            Argument(
                "--units",
                names_result=True,
                choices=("neurons", "all"),
                help="neurons (default), or what attention and the feed-forward add as well",
            ),
            _sentences(default=1000, help="the first N lines that all have (default 1000)"),
            Argument(
                "--concepts",
                type=_count,
                default=50,
                metavar="N",
                help="the commonest N (default 50)",
            ),
        ),
    ),
    Task(
        "neurons",
        "neurons.language_neurons",
        "how far single neurons belong to single languages",
        "--data corpus",
        "CORPUS",
        (
            _sentences(default=500, help="that all languages have (default 500)"),
            Argument(
                "--positions",
                names_result=True,
                choices=("tokens", "words"),
                help="tokens: all (default); words: the last piece of each, as published; that "
                "result goes to neurons-positions-words.json",
            ),
        ),
    ),
    Task(
        "geometry",
        "analysis.geometry",
        "the two tables: map, neighbours, agreement with distances between languages",
        "--references uriel.npz --families families.tsv",
        None,
        (
            _REFERENCES,
            Argument(
                "--families",
                type=local,
                metavar="FILE",
                help="a line a language, its code and its family; "
                "or the world.json of a synthetic corpus",
            ),
        ),
    ),
    Task(
        "donors",
        "analysis.donors",
        "the language to fine-tune on, chosen by language vectors and in other ways",
        "--data sib200 --references uriel.npz --gin.finetune.num_seeds=1",
        "DIR",
        (
            Argument(
                "--on",
                choices=("sib200", "taxi1500", "ner", "pos"),
                default="sib200",
                help="task (default sib200)",
            ),
            _language_script("--pivot", "the usual donor, to compare with"),
            Argument(
                "--donors",
                dest="names",
                nargs="+",
                metavar="NAME",
                help="to choose from (default: all that the model was trained on)",
            ),
            _REFERENCES,
        ),
        finetune=True,
    ),
    Task(
        "language-probe",
        "analysis.language_probe",
        "how well the language can be read off one token's state, at every layer",
        "--data corpus --step all",
        "CORPUS",
        (_sentences(default=750, help="of each language, a third of them to test (default 750)"),),
    ),
    Task(
        "ablation",
        "analysis.ablation",
        "what a task loses without each component of the model",
        "--on mlm --data store",
        "DATA",
        (
            Argument("--on", choices=_ABLATION_TASKS, default="mlm", help="task (default mlm)"),
            Argument(
                "--parts",
                nargs="+",
                choices=_PARTS,
                default=list(_PARTS[:5]),
                help="what is removed (default: %(default)s)",
            ),
            Argument(
                "--mode",
                choices=("zero", "mean", "language-mean"),
                default="mean",
                help="what an output is held at; language-mean: the mean over text of the language "
                "tested, with --on mlm (default mean)",
            ),
            _language_script("--pivot", "of the queries, or to fine-tune on"),
        ),
        finetune=True,
        reference=True,
    ),
)
TASKS = {task.name: task for task in _ROWS}


def add(commands: Any) -> None:
    """Adds the verb ``evaluate`` with all its tasks."""
    tasks = add_actions(commands, "evaluate", "measure a trained model", "task")
    for task in TASKS.values():
        parser = add_verb(tasks, task.name, _evaluate, task.summary, f"--model run {task.example}")
        model = {"nargs": "+", "type": location, "metavar": task.model}
        parser.add_argument("--model", required=True, **model)
        if task.data is not None:
            kind = location if task.data == "STORE" else local
            parser.add_argument("--data", type=kind, required=True, metavar=task.data)
        parser.add_argument(
            "--output",
            type=location,
            metavar="FILE.json",
            help=f"default, for a run: RUN/evaluation/{task.name}.json",
        )
        parser.add_argument(
            "--step",
            nargs="+",
            type=_step,
            metavar="N|all",
            help="checkpoint or snapshot of a run (default: the best checkpoint); of several, or "
            "all snapshots, the result goes to TASK-steps.json",
        )
        if task.model != "RUN":
            parser.add_argument(
                "--steps",
                nargs="+",
                type=int,
                metavar="N",
                help="for several Hugging Face folders: the step of each",
            )
        add_edits(parser)
        for argument in task.arguments:
            parser.add_argument(argument.flag, **argument.settings)
        if task.finetune:
            add_gin(parser)
        parser.set_defaults(task=task.name)


def protocol(task: str) -> ModuleType:
    """Imports the protocol of a task."""
    return importlib.import_module(f"langsamp_jax.{TASKS[task].module}")


def measures_of(record: Mapping[str, Any]) -> Mapping[str, float]:
    """Returns the measures of a result, for ``compare``; raises KeyError for an unknown task."""
    return protocol(record["task"]).measures(record)


def _evaluate(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluation.jobs import Job, run
    from langsamp_jax.evaluation.series import FolderSteps, RunSteps, run_series, show_series
    from langsamp_jax.models.edits import parse_edit

    task, module = TASKS[args.task], protocol(args.task)
    options = {argument.option: getattr(args, argument.option) for argument in task.arguments}
    variant = "".join(
        f"-{argument.option}-{options[argument.option]}"
        for argument in task.arguments
        if argument.names_result and options[argument.option] is not None
    )
    options |= task.options | ({"reference": args.reference} if task.reference else {})
    if task.finetune:
        from langsamp_jax.config import from_gin
        from langsamp_jax.evaluation.config import FineTuneConfig

        options["config"] = from_gin(FineTuneConfig)
    change = {"edits": tuple(map(parse_edit, args.edit)), "reference": args.reference}
    models, steps, folder_steps = args.model, args.step or [None], getattr(args, "steps", None)
    data = getattr(args, "data", None)
    if len(models) == len(steps) == 1 and folder_steps is None and steps != ["all"]:
        job = Job(args.task, models[0], data, steps[0], args.output, variant, **change)
        print(module.show(run(job, module, **options)))
        return
    job = Job(args.task, models[0], data, None, args.output, f"{variant}-steps", **change)
    if len(models) > 1 or folder_steps is not None:
        refuse(args, "several --model", "step")
        series = FolderSteps(models, folder_steps or [])
    else:
        series = RunSteps(models[0], None if "all" in steps else steps, data)
    print(show_series(run_series(job, series, module, **options), module))
