"""The verb ``inspect``: what the model sees.

langsamp inspect --data STORE --step 3 --gin_file small_text.gin
"""

import argparse
import json
import os
import sys
from typing import Any

from langsamp_jax.cli.parser import add_gin, add_json, add_store, add_verb


def add(commands: Any) -> None:
    """Adds the verb to the subparsers ``commands``."""
    verb = add_verb(
        commands,
        "inspect",
        inspect,
        "show rows as text, and what a training step hides in them",
        "--data store --step 1 --gin_file small_text.gin",
    )
    add_store(verb)
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
    add_gin(verb)
    add_json(verb)


def inspect(args: argparse.Namespace) -> None:
    """Shows rows of a store, or those of a training step with what it hides."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a look takes no device away from a training
    from langsamp_jax.cli.inspect_rows import inspect_rows
    from langsamp_jax.cli.inspect_view import legend, record, show
    from langsamp_jax.data.store import Store
    from langsamp_jax.training.config import configs_from_gin

    store, configs = Store(args.data), configs_from_gin()
    title, rows = inspect_rows(store, configs, args.language, args.step, args.split, args.rows)
    tokenizer = store.tokenizer()
    if args.json:
        print(json.dumps([record(row, tokenizer) for row in rows], indent=1))
        return
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = [title, *(show(row, tokenizer, args.ids, colours) for row in rows)]
    print("\n\n".join([*shown, legend(tokenizer, colours)]))
