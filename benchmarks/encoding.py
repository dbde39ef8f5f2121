"""Sentences to vectors for retrieval: ours beside a ``transformers`` loop as the reference has it.

The loop: batches of 100 sentences in the order of the file, padded to the longest of the batch, all
12 layers, their hidden states averaged over tokens. Both encode the same sentences with the same
random XLM-R base, in turn, in a process each; their vectors of the 8th layer are compared.

    python benchmarks/encoding.py --xlmr sentencepiece.bpe.model --corpus flores/text --work DIR
"""

import argparse
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import record
from interleave import Contender, rounds, spread
from step_jax import device_name

from langsamp_jax.huggingface.export import save_weights, state_dict
from langsamp_jax.huggingface.layout import stock_config
from langsamp_jax.io.files import new_folder
from langsamp_jax.languages.aligned_text import aligned_lines, corpus_files
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--xlmr", type=Path, required=True, help="XLM-R's SentencePiece model")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for 1.2 GB of files")
    parser.add_argument(
        "--languages", nargs="+", default=["eng_Latn", "swh_Latn", "tha_Thai"], metavar="NAME"
    )
    parser.add_argument("--sentences", type=int, default=200, help="of each language")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of results")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    model = args.work / "model"
    if not model.exists():
        write_random_base(args.xlmr, model)
    files = corpus_files(args.corpus)
    lines = {name: aligned_lines(files[name])[: args.sentences] for name in args.languages}
    (args.work / "lines.json").write_text(json.dumps(lines))
    where = {"model": str(model), "lines": str(args.work / "lines.json")}
    vectors = {kind: args.work / f"{kind}.npy" for kind in ("ours", "transformers")}
    ours, theirs = (
        Contender("encoding_contender.py", {**where, "kind": kind, "vectors": str(file)})
        for kind, file in vectors.items()
    )
    with ours, theirs:
        seconds = [[one["seconds"] for one in side] for side in rounds(ours, theirs, args.rounds)]
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    found = [np.load(file) for file in vectors.values()]
    values = {
        "languages": args.languages,
        "sentences": len(found[0]),
        "seconds": {"ours": spread(seconds[0]), "transformers": spread(seconds[1])},
        "ratio": spread(ratios),
        "sentences_per_second": len(found[0]) / float(np.median(seconds[0])),
        "largest_difference": float(np.abs(found[0] - found[1]).max()),
        "scale": float(np.abs(found[1]).mean()),
    }
    print(json.dumps(values, indent=1))
    record.save(device_name(), "encoding", "XLM-R base, 8th layer", values, args.output)


def write_random_base(tokenizer_file: Path, folder: Path) -> None:
    """A Hugging Face folder of an XLM-R base with random weights."""
    tokenizer = load_tokenizer(tokenizer_file)
    config = ModelConfig(placement="none")
    model = LangSamp(config, tokenizer.vocab_size, 0, 0)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    description = stock_config(config, tokenizer.vocabulary)
    with new_folder(folder) as partial:
        (partial / "config.json").write_text(json.dumps(description, indent=1) + "\n")
        save_weights(partial, state_dict(config, params, tokenizer.vocabulary))
        write_tokenizer(tokenizer, partial, config.max_length)


if __name__ == "__main__":
    main()
