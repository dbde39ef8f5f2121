"""A full-size XLM-R base against ``transformers`` on real text: import, export, import.

Every tensor is random, biases, LayerNorm and token types included. Compared are the hidden states
of every layer, the logits, and the five best pieces for a masked token of each sentence, on one
sentence in each script of a corpus folder, in padded batches, in float32.

    python benchmarks/xlmr_parity.py --xlmr sentencepiece.bpe.model --corpus udhr/text \\
        --work /tmp/xlmr_parity --output benchmarks/results/xlmr_parity.json
"""

import argparse
import json
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from langsamp_jax.huggingface.export import state_dict
from langsamp_jax.huggingface.layout import stock_config
from langsamp_jax.huggingface.loading import load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.languages.inventory import split_language_script
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import load_tokenizer

BATCH, LENGTH = 4, 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--xlmr", type=Path, required=True, help="XLM-R's SentencePiece model")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for 2.5 GB of files")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.xlmr)
    reference = random_base(tokenizer.vocab_size)
    original, exported = args.work / "original", args.work / "exported"
    reference.save_pretrained(original)
    write_tokenizer(tokenizer, original, 512)
    model, params, seconds = imported(original, tokenizer)

    exported.mkdir(parents=True, exist_ok=True)
    config = stock_config(model.config, tokenizer.vocabulary)
    (exported / "config.json").write_text(json.dumps(config))
    tensors = state_dict(model.config, params, tokenizer.vocabulary)
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(tokenizer, exported, 512)
    again, info = transformers.AutoModelForMaskedLM.from_pretrained(
        exported, output_loading_info=True
    )
    _, params_again, _ = imported(exported, tokenizer)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, params_again)
    del params_again

    scripts, tokens, mask = sentences(args.corpus, tokenizer)
    results = {
        "parameters": reference.num_parameters(),
        "scripts": len(scripts),
        "import_seconds": round(seconds, 1),
        "import": compare(model, params, reference.eval(), tokens, mask, tokenizer),
        "export": compare(model, params, again.eval(), tokens, mask, tokenizer),
        "keys after export": {kind: sorted(keys) for kind, keys in info.items()},
        "second import bit-identical": all(jax.tree.leaves(same)),
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def random_base(vocab_size: int) -> torch.nn.Module:
    config = transformers.XLMRobertaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = transformers.XLMRobertaForMaskedLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
            if name.endswith(("LayerNorm.weight", "layer_norm.weight")):
                parameter.add_(1)
    return model.eval()


def imported(folder: Path, tokenizer) -> tuple[LangSamp, dict, float]:
    started = time.perf_counter()
    pretrained = open_pretrained(folder)
    config = ModelConfig(**pretrained.fields, placement="none")
    pretrained.check(config)
    model = LangSamp(config, tokenizer.vocab_size, 0, 0)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    everywhere = replicated(make_mesh(MeshConfig()))
    places = jax.tree.map(lambda _: everywhere, shapes)
    rows = vocabulary_rows(pretrained, tokenizer)
    params = jax.block_until_ready(load_params(pretrained, model, rows, places, InitConfig(), 0))
    return model, params, time.perf_counter() - started


def sentences(corpus: Path, tokenizer) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The first sentence of the first language of each script, one token of each masked."""
    first = {}
    for file in sorted(corpus.glob("*.txt")):
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        if lines:
            first.setdefault(split_language_script(file.stem)[1], lines[0])
    ids, lengths = tokenizer.encode(list(first.values()))
    vocabulary = tokenizer.vocabulary
    tokens = np.full((len(first), LENGTH), vocabulary.pad_id, np.int32)
    for row, sentence in zip(tokens, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        cut = sentence[:LENGTH]
        row[: len(cut)] = cut
        row[len(cut) // 2] = vocabulary.mask_id
    return list(first), tokens, tokens != vocabulary.pad_id


def compare(model: LangSamp, params, reference, tokens, mask, tokenizer) -> dict[str, float]:
    """The largest differences, over all valid positions, and how many top fives agree."""

    @jax.jit
    def forward(params, *batch):
        states = model.apply({"params": params}, *batch, method=model.hidden_states)
        return states, model.apply({"params": params}, *batch)

    worst = {"hidden_states": 0.0, "logits": 0.0}
    agree = masked = 0
    for start in range(0, len(tokens), BATCH):
        part, valid = tokens[start : start + BATCH], mask[start : start + BATCH]
        with torch.no_grad():
            theirs = reference(
                torch.tensor(part).long(),
                attention_mask=torch.tensor(valid).long(),
                output_hidden_states=True,
            )
        states = np.stack([state.numpy() for state in theirs.hidden_states])
        ours, our_logits = map(np.asarray, forward(params, part, valid))
        worst["hidden_states"] = max(
            worst["hidden_states"], float(np.abs(ours - states)[:, valid].max())
        )
        ours, other = our_logits, theirs.logits.numpy()
        worst["logits"] = max(worst["logits"], float(np.abs(ours - other)[valid].max()))
        hidden = part == tokenizer.vocabulary.mask_id
        best = [np.argsort(-scores[hidden], axis=-1)[:, :5] for scores in (ours, other)]
        agree += int((best[0] == best[1]).all(axis=1).sum())
        masked += int(hidden.sum())
    return {**worst, "masked tokens": masked, "same top five": agree}


if __name__ == "__main__":
    main()
