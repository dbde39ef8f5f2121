"""Peak host memory and time of starting from an XLM-R base of 401,145 pieces.

A random XLM-R base with 250,002 pieces is grown to Glot500's 401,145 while it is imported, written
as a Hugging Face folder, and that folder is imported again. Each import is a process of its own.

    python benchmarks/import_memory.py --xlmr sentencepiece.bpe.model --work /tmp/import_memory
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PIECES = 401_145


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--xlmr", type=Path, required=True, help="XLM-R's SentencePiece model")
    parser.add_argument("--work", type=Path, required=True, help="a folder for 6 GB of files")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, args.work / "grown")))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    base, tokenizer = args.work / "base", args.work / "extended.model"
    make_base(base, args.xlmr)
    tokenizer.write_bytes(extended(args.xlmr.read_bytes()))
    results = {}
    for name, folder in (("grown while imported", base), ("imported", args.work / "grown")):
        command = [sys.executable, __file__, "--xlmr", args.xlmr, "--work", args.work]
        child = subprocess.run(
            [*map(str, command), "--measure", str(folder), str(tokenizer)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        results[name] = json.loads(child.stdout.splitlines()[-1])
        print(name, results[name])
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(folder: Path, tokenizer_file: Path, grown: Path) -> dict[str, float]:
    """Imports ``folder`` for the tokenizer on one CPU device; the first time, writes ``grown``."""
    import flax.linen as nn
    import jax
    from safetensors.numpy import save_file

    from langsamp_jax.huggingface.export import state_dict
    from langsamp_jax.huggingface.layout import stock_config
    from langsamp_jax.huggingface.loading import load_params, vocabulary_rows
    from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
    from langsamp_jax.models.config import ModelConfig
    from langsamp_jax.models.langsamp import LangSamp, init_params
    from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
    from langsamp_jax.text.huggingface_files import write_tokenizer
    from langsamp_jax.text.tokenizer import load_tokenizer

    everywhere = replicated(make_mesh(MeshConfig()))
    before = peak_memory()
    started = time.perf_counter()
    pretrained = open_pretrained(folder)
    config = ModelConfig(**pretrained.fields, placement="none")
    pretrained.check(config)
    rows = vocabulary_rows(pretrained, load_tokenizer(tokenizer_file))
    model = LangSamp(config, PIECES, 0, 0)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    places = jax.tree.map(lambda _: everywhere, shapes)
    params = jax.block_until_ready(load_params(pretrained, model, rows, places, InitConfig(), 0))
    seconds, peak = time.perf_counter() - started, peak_memory()
    tokenizer = load_tokenizer(tokenizer_file)
    tensors = state_dict(config, params, tokenizer.vocabulary)
    checkpoint = sum(tensor.nbytes for tensor in tensors.values())
    if not grown.exists():
        grown.mkdir()
        (grown / "config.json").write_text(json.dumps(stock_config(config, tokenizer.vocabulary)))
        save_file(tensors, grown / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(tokenizer, grown, config.max_length)
    return {
        "pieces": PIECES,
        "checkpoint_gb": round(checkpoint / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "before_gb": round(before / 1e9, 3),
        "peak_over_checkpoint": round(peak / checkpoint, 3),
        "seconds": round(seconds, 1),
    }


def make_base(folder: Path, xlmr: Path) -> None:
    """A random XLM-R base, written tensor by tensor as ``transformers`` names them."""
    import flax.linen as nn
    import jax
    from safetensors.numpy import save_file

    from langsamp_jax.huggingface.export import state_dict
    from langsamp_jax.huggingface.layout import stock_config
    from langsamp_jax.models.config import ModelConfig
    from langsamp_jax.models.langsamp import LangSamp, init_params
    from langsamp_jax.text.huggingface_files import write_tokenizer
    from langsamp_jax.text.tokenizer import load_tokenizer

    if folder.exists():
        return
    tokenizer, config = load_tokenizer(xlmr), ModelConfig(placement="none")
    model = LangSamp(config, tokenizer.vocab_size, 0, 0)
    params = jax.jit(lambda: nn.unbox(init_params(model, jax.random.key(0))))()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stock_config(config, tokenizer.vocabulary)))
    tensors = state_dict(config, params, tokenizer.vocabulary)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(tokenizer, folder, config.max_length)


def extended(model: bytes) -> bytes:
    """XLM-R's pieces and as many pairs of its pieces as make 401,145 ids."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    known = [piece.piece for piece in proto.pieces[3:]]
    there, rng = set(known), np.random.default_rng(0)
    while len(proto.pieces) < PIECES - 2:
        first, second = rng.integers(0, len(known), 2)
        if (pair := known[first] + known[second].lstrip("▁")) not in there:
            there.add(pair)
            proto.pieces.add(piece=pair, score=-20.0)
    return proto.SerializeToString()


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
