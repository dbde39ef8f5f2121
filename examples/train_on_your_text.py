"""Trains a small model from scratch on a folder of your text, one file a language.

    python examples/train_on_your_text.py text/ output/

``text/`` holds files named by ISO 639-3 language and ISO 15924 script, ``deu_Latn.txt``, with a
sentence on each line. Given again, the command goes on from what stands in ``output/``.
Needs ``pip install 'langsamp-jax[data]'``.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import langsamp_jax
from data_pipelines.packing.prepare import prepare
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.errors import UserError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="folder of iso639-3_Script.txt files")
    parser.add_argument("output", type=Path, help="folder for the tokenizer, store and run")
    parser.add_argument("--vocab_size", type=int, default=8000, help="pieces of the tokenizer")
    parser.add_argument("--sequence_length", type=int, default=64, help="tokens a row, to 128")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=64, help="rows of a step")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    tokenizer, store = args.output / "tokenizer.model", args.output / "store"

    # 1. A tokenizer of the text: smaller languages are sampled up.
    args.output.mkdir(parents=True, exist_ok=True)
    if not tokenizer.exists():
        train_tokenizer(args.text, args.vocab_size, tokenizer)

    # 2. A store: rows of tokens of each language; a twentieth of the lines is held out.
    prepare(args.text, tokenizer, store, args.sequence_length, validation_fraction=0.05)
    for name in (manifest := langsamp_jax.Store(store).manifest).names:
        print(f"{name}: {manifest.counts['train'][name].tokens:,} tokens to train on")

    # 3. Training. A shipped file says how large the model is; settings by name win over it.
    settings = {"train.num_steps": args.steps, "train.global_batch_size": args.batch_size}
    run = langsamp_jax.train(store, args.output / "run", settings, gin_files=["small_text.gin"])

    # 4. What it has learned. One who guesses evenly among all pieces has the loss ln(pieces).
    lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [r["eval/loss"] for r in map(json.loads, lines) if "eval/loss" in r]
    guess = math.log(run.tokenizer.vocab_size)
    print(f"validation loss {min(losses):.3f} nats a token; guessing evenly: {guess:.3f}")
    print(f"load it with langsamp_jax.load_model('{run.path}')")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
