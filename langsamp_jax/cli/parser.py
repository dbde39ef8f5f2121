"""What can be typed: the verbs of the ``langsamp`` command and their arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from langsamp_jax import __version__
from langsamp_jax.cli import verbs
from langsamp_jax.io.storage import local, location

_GIN_HINT = "; any setting can be given as --gin.NAME=VALUE"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command; ``call`` of what it gives is the function of the verb."""
    langsamp = _Parser(
        prog="langsamp", description="Multilingual encoder pretraining in JAX.", allow_abbrev=False
    )
    langsamp.add_argument("--version", action="version", version=f"langsamp {__version__}")
    commands = langsamp.add_subparsers(title="verbs", metavar="VERB", required=True)

    demo = _verb(
        commands, "demo", verbs.demo, "everything, on a synthetic corpus", "--output demo_output"
    )
    demo.add_argument("--output", type=local, default=Path("demo_output"), metavar="DIR")
    demo.set_defaults(gin_file=["demo.gin"])
    demo.epilog += _GIN_HINT

    verb = _verb(
        commands,
        "synthesize",
        verbs.synthesize,
        "write a synthetic parallel corpus",
        "--output corpus",
    )
    verb.add_argument("--output", type=local, required=True, metavar="CORPUS")
    verb.add_argument("--languages", type=int, default=16, metavar="N", help="files (default 16)")
    verb.add_argument(
        "--sentences", type=int, default=20_000, metavar="N", help="of the largest (default 20000)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N")

    tokenizer = commands.add_parser(
        "tokenizer", help="train or extend a tokenizer", allow_abbrev=False
    )
    actions = tokenizer.add_subparsers(title="actions", metavar="ACTION", required=True)
    verb = _verb(
        actions,
        "train",
        verbs.tokenizer_train,
        "SentencePiece unigram on a temperature sample, in XLM-R's id layout",
        "--corpus corpus --vocab_size 8000 --output my.model",
    )
    _corpus(verb)
    verb.add_argument("--vocab_size", type=int, required=True, metavar="N", help="pieces")
    verb.add_argument("--output", type=local, required=True, metavar="FILE.model")
    _sample(verb)

    verb = _verb(
        actions,
        "extend",
        verbs.tokenizer_extend,
        "append pieces for new languages; old ids and scores stay",
        "--base sentencepiece.bpe.model --corpus corpus --new_pieces 20000 --output extended",
    )
    verb.add_argument("--base", type=local, required=True, metavar="FILE.model")
    _corpus(verb)
    verb.add_argument("--new_pieces", type=int, required=True, metavar="N", help="to append")
    verb.add_argument("--output", type=local, required=True, metavar="DIR")
    _sample(verb)

    verb = _verb(
        commands,
        "prepare",
        verbs.prepare,
        "tokenise and pack text into a store",
        "--corpus corpus --tokenizer my.model --output store",
    )
    _prepare(verb)

    verb = _verb(
        commands, "mixture", verbs.mixture, "show the rate of each language", "--data store"
    )
    _store(verb)
    _gin(verb)
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.add_argument(
        "--plot", type=local, metavar="FILE", help="draw it too: FILE.png, FILE.svg or FILE.pdf"
    )

    verb = _verb(
        commands,
        "inspect",
        verbs.inspect,
        "show rows as text, and what a training step hides in them",
        "--data store --step 1 --gin_file small_text.gin",
    )
    _store(verb)
    verb.add_argument("--language", metavar="NAME", help="a language-script (default: all)")
    verb.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="the batch of this training step, with its masks (default 1 without --language)",
    )
    verb.add_argument("--rows", type=int, default=4, metavar="K", help="the first K (default 4)")
    verb.add_argument(
        "--split",
        choices=("train", "validation"),
        default="train",
        help="of the rows of a language (default train)",
    )
    verb.add_argument("--ids", action="store_true", help="token ids too")
    _gin(verb)
    verb.add_argument("--json", action="store_true", help="for programs")

    verb = _verb(
        commands,
        "train",
        verbs.train,
        "pretrain, or go on where the same command stopped",
        "--gin_file small_text.gin --data store --output run --gin.train.num_steps=500",
    )
    data = verb.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=location, metavar="STORE")
    data.add_argument("--mixture", metavar="NAME", help="a seqio Mixture or Task, without a store")
    verb.add_argument("--module", metavar="M", help="for a mixture: what registers it")
    verb.add_argument("--sequence_length", type=int, metavar="N", help="for a mixture: default 512")
    verb.add_argument("--output", type=location, metavar="RUN")
    verb.add_argument(
        "--init_from",
        type=location,
        metavar="HF_DIR",
        help="start from the weights of a Hugging Face folder; its config.json decides the sizes",
    )
    _gin(verb)
    verb.add_argument(
        "--dry_run", action="store_true", help="show configuration, sizes and mixture, and stop"
    )
    _several_processes(verb)

    verb = _verb(
        commands,
        "plan",
        verbs.plan,
        "compile a training for a machine you do not have: memory, speed, traffic",
        "--gin_file langsamp_base.gin --topology v5e:4x4 --gin.model.dtype=bfloat16",
    )
    verb.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:4x4, v5p:4x4x4, ...; cpu:8 (simulated); here (the devices of this machine)",
    )
    _gin(verb)
    verb.add_argument("--data", type=location, metavar="STORE", help="takes the sizes from a store")
    sizes = verb.add_argument_group("sizes without a store (default: the published run's)")
    for name in ("vocab_size", "languages", "scripts", "sequence_length"):
        sizes.add_argument(f"--{name}", type=int, metavar="N")
    verb.add_argument(
        "--find_batch",
        action="store_true",
        help="the most rows per device that fit, in place of train.global_batch_size",
    )
    verb.add_argument("--json", action="store_true", help="for programs")

    verb = _verb(
        commands,
        "export",
        verbs.export,
        "write a trained model for PyTorch, as a Hugging Face folder",
        "--run run --output hf_model --fold deu_Latn",
    )
    verb.add_argument("--run", type=location, required=True, metavar="RUN")
    verb.add_argument("--output", type=location, required=True, metavar="HF_DIR")
    verb.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the best)")
    form = verb.add_mutually_exclusive_group()
    form.add_argument(
        "--fold", metavar="NAME", help="a language-script whose vectors go into the plain head"
    )
    form.add_argument(
        "--full", action="store_true", help="with the two tables, and the code that they need"
    )

    languages = commands.add_parser(
        "languages", help="change a model's languages", allow_abbrev=False
    )
    actions = languages.add_subparsers(title="actions", metavar="ACTION", required=True)
    verb = _verb(
        actions,
        "add",
        verbs.languages_add,
        "append rows to the two tables of a full export",
        "--model hf_full --languages quy_Latn ayr_Latn --start script --output hf_more",
    )
    verb.add_argument("--model", type=local, required=True, metavar="HF_DIR")
    verb.add_argument("--languages", nargs="+", required=True, metavar="NAME")
    verb.add_argument(
        "--start",
        required=True,
        metavar="HOW",
        help="first values: script or family (the mean of the model's languages of the same), "
        "a language-script of the model, or random",
    )
    verb.add_argument(
        "--families", type=local, metavar="FILE.tsv", help="a line a language: its code, its family"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of random values")
    verb.add_argument("--output", type=local, required=True, metavar="HF_DIR")

    from langsamp_jax.cli import evaluation  # it imports this module

    evaluation.add(commands)

    verb = _verb(
        commands,
        "compare",
        verbs.compare,
        "runs side by side: variants over seeds, on what they were evaluated on",
        "vanilla_0 vanilla_1 langsamp_0 langsamp_1 --output compared.json",
    )
    verb.add_argument(
        "runs", nargs="+", type=location, metavar="RUN", help="the first is compared with"
    )
    verb.add_argument("--output", type=local, metavar="FILE.json")
    verb.add_argument(
        "--measures", default="", metavar="TEXT", help="show those whose name holds this"
    )

    verb = _verb(
        commands,
        "report",
        verbs.report,
        "an HTML page of a run and its evaluations, and its figures for a paper",
        "--run run",
    )
    verb.add_argument("--run", type=location, required=True, metavar="RUN")
    return langsamp


def _verb(
    commands: Any, name: str, call: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    verb = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    verb.epilog = f"example: {verb.prog} {example}"
    verb.set_defaults(call=call)
    return verb


def _prepare(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--output", type=local, required=True, metavar="STORE")
    verb.add_argument("--sequence_length", type=int, metavar="N", help="default 512")
    text = verb.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", type=local, help="folder of iso639-3_Script.txt files")
    text.add_argument("--mixture", metavar="NAME", help="a registered seqio Mixture or Task")
    verb.add_argument("--module", metavar="M", help="for a mixture: what registers it")
    corpus = verb.add_argument_group("for a corpus")
    corpus.add_argument(
        "--tokenizer",
        type=local,
        metavar="FILE",
        help="a SentencePiece .model, a tokenizer.json of XLM-R's kind or BERT's, or vocab.txt",
    )
    corpus.add_argument("--validation_fraction", type=float, metavar="F", help="default 0.01")
    corpus.add_argument("--normalization", choices=("NFC", "none"), help="default NFC")
    corpus.add_argument("--duplicates", choices=("drop", "keep"), help="equal lines; default drop")
    corpus.add_argument(
        "--held_out",
        type=local,
        nargs="+",
        metavar="PATH",
        help="evaluation text, files or folders: lines that occur there are left out",
    )
    corpus.add_argument(
        "--add_to",
        type=local,
        metavar="STORE",
        help="a store that comes first, with its tokenizer and settings; it is not changed",
    )
    work = verb.add_argument_group("how it is done")
    work.add_argument(
        "--skip_damaged", action="store_true", help="leave out, and count, what cannot be read"
    )
    work.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    work.add_argument("--runner", choices=("local", "beam"), default="local")
    work.add_argument(
        "--beam_options", metavar="'...'", help="for Beam: '--runner=FlinkRunner ...'"
    )


def _corpus(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--corpus", type=local, required=True, help="folder of iso639-3_Script.txt files"
    )


def _sample(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--temperature", type=float, default=1 / 0.3, help="default 1/0.3")
    verb.add_argument(
        "--sentences", type=int, default=1_000_000, metavar="N", help="at most (default 1000000)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N")


def _store(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=location, required=True, metavar="STORE")


def _gin(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="repeatable")
    verb.epilog += _GIN_HINT


def _several_processes(verb: argparse.ArgumentParser) -> None:
    several = verb.add_argument_group(
        "several processes",
        "Found by themselves on TPU pods, under Slurm and in Kubernetes Jobs; else by these, or by "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0")
    several.add_argument("--num_processes", type=int, metavar="N")
    several.add_argument("--process_id", type=int, metavar="I", help="0 to N - 1")
    several.add_argument(
        "--start_timeout", type=float, default=300, metavar="SECONDS", help="default 300"
    )
