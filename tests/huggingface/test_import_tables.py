"""Which row comes from where: the two tables, vocabularies that have grown, and sharded parameters.

The number of devices is fixed when jax starts, so this file is also the program that imports on 8
simulated devices: ``test_import_tables.py OUTPUT FOLDER TOKENIZER``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

from langsamp_jax.huggingface import loading
from langsamp_jax.huggingface.loading import describe, load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.languages.inventory import EMPTY, Inventory
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.parallel.sharding import shardings
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer

NAMES = ["qaa_Latn", "deu_Latn", "qab_Cyrl"]


def flat(params: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


def main(output: Path, folder: Path, tokenizer_file: Path) -> None:
    """Imports sharded and replicated, in chunks; shapes and values are left in ``output``."""
    loading._CHUNK_BYTES = 5000
    tokenizer, pretrained = load_tokenizer(tokenizer_file), open_pretrained(folder)
    inventory = EMPTY.extended(NAMES)
    model = LangSamp(
        ModelConfig(**pretrained.fields),
        tokenizer.vocab_size,
        len(inventory.languages),
        len(inventory.scripts),
    )
    rows = vocabulary_rows(pretrained, tokenizer)
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    for name, config in (
        ("sharded", MeshConfig(fsdp=2, tensor=2)),
        ("narrow", MeshConfig(data=1, fsdp=1, tensor=8)),
        ("replicated", MeshConfig()),
    ):
        mesh = make_mesh(config)
        places = shardings(boxed, mesh)
        if name == "replicated":
            tree = jax.tree.structure(nn.unbox(boxed))
            places = tree.unflatten([replicated(mesh)] * tree.num_leaves)
        params = load_params(pretrained, model, rows, places, InitConfig(), seed=0)
        np.savez(output / name, **flat(params))
        words = params["word_embeddings"]
        facts = {"devices": len(words.sharding.device_set), "part": words.addressable_shards[0]}
        facts["part"] = facts["part"].data.shape
        (output / f"{name}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def plain(tokenizer, tokenizer_file, tmp_path_factory, make_checkpoint) -> Path:
    """A small XLM-R with the tokenizer of the corpus."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    make_checkpoint(folder, "xlm-roberta", tokenizer.vocab_size)
    shutil.copy(tokenizer_file, folder / "sentencepiece.bpe.model")
    return folder


# The two tables


@pytest.fixture(scope="module")
def published(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the published checkpoints: two tables without names, and no token-type vector."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("published") / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["roberta.embeddings.token_type_embeddings.weight"]
    rng = np.random.default_rng(5)
    for kind, size in (("lang", 610), ("script", 30)):
        table = rng.normal(0, 0.3, (size, 32)).astype("f")
        tensors[f"roberta.embeddings.{kind}_type_embeddings.weight"] = table
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_names_of_published_tables(published, shared_data):
    file = shared_data / "langsamp" / "inventory.json"
    names = json.loads(file.read_text("utf-8"))
    inventory = open_pretrained(published).inventory
    assert [*inventory.languages] == names["languages"]
    assert [*inventory.scripts] == names["scripts"]


def test_rows_of_published_tables_keep_their_names(published, plain, import_folder):
    model, params = import_folder(published)
    tensors = load_file(published / "model.safetensors")
    assert (model.config.placement, model.num_languages, model.num_scripts) == ("output", 610, 30)
    for name in ("deu_Latn", "zho_Hani", "srp_Cyrl"):
        language, script = Inventory.published().ids(name)
        for ours, kind, row in (("language", "lang", language), ("script", "script", script)):
            table = tensors[f"roberta.embeddings.{kind}_type_embeddings.weight"]
            np.testing.assert_array_equal(params["conditioning"][ours][row], table[row])
    # Without the vector the positions are as they stand.
    positions = tensors["roberta.embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(params["encoder"]["position_embeddings"], positions[2:])
    constant = load_file(plain / "model.safetensors")[
        "roberta.embeddings.token_type_embeddings.weight"
    ]
    with_it = import_folder(plain)[1]["encoder"]["position_embeddings"]
    np.testing.assert_array_equal(with_it, positions[2:] + constant)


def test_new_languages_get_rows_behind_the_old_ones(published, import_folder):
    old = import_folder(published)[1]["conditioning"]
    model, params = import_folder(published, names=["deu_Latn", "qaa_Latn", "qab_Qaaa"])
    new = params["conditioning"]
    assert (model.num_languages, model.num_scripts) == (612, 31)
    for kind, size in (("language", 610), ("script", 30)):
        np.testing.assert_array_equal(new[kind][:size], old[kind])
        added = np.asarray(new[kind][size:])
        assert (0.01 < added.std(axis=1)).all() and (added.std(axis=1) < 0.04).all()
    assert not (new["language"][610] == new["language"][611]).any()
    inventory = Inventory.published().extended(["deu_Latn", "qaa_Latn", "qab_Qaaa"])
    text = describe(open_pretrained(published), model, None, inventory, InitConfig())
    assert "new languages, random: qaa, qab" in text and "new scripts, random: Qaaa" in text


def test_tables_in_chunks(published, import_folder, monkeypatch):
    """The cut between the old rows and the new ones falls between two chunks, too."""
    names = [f"qa{letter}_Latn" for letter in "abcdefghijklmnopqrstuvw"]
    whole = flat(import_folder(published, names=names)[1])
    for rows in (10, 61):
        monkeypatch.setattr("langsamp_jax.huggingface.loading._CHUNK_BYTES", rows * 32 * 4)
        parts = flat(import_folder(published, names=names)[1])
        for name, leaf in whole.items():
            np.testing.assert_array_equal(parts[name], leaf, err_msg=name)


def test_one_table_alone(published, tmp_path, import_folder):
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["roberta.embeddings.script_type_embeddings.weight"]
    save_file(tensors, folder / "model.safetensors")
    model, params = import_folder(folder)
    assert model.config.use_language and not model.config.use_script
    assert params["conditioning"].keys() == {"language"}


# A vocabulary that has grown


@pytest.fixture(scope="module")
def grown(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """12 more pieces: pairs of old ones, two with an unknown part."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    words = [piece for piece in tokenizer.pieces if piece.startswith("▁") and len(piece) > 3]
    pairs = [words[i] + words[-1 - i][1:] for i in range(10)]
    assert not set(pairs) & set(tokenizer.pieces) and len(set(pairs)) == 10
    for piece in (*pairs, f"{words[0]}☃", "☃☃"):
        proto.pieces.add(piece=piece, score=-30.0)
    file = tmp_path_factory.mktemp("grown") / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    return load_tokenizer(file)


@pytest.mark.parametrize("new_pieces", ["mean", "normal"])
def test_rows_of_the_vocabulary_go_by_piece(plain, tokenizer, grown, new_pieces, import_folder):
    model, params = import_folder(plain, grown, init=InitConfig(new_pieces))
    tensors = load_file(plain / "model.safetensors")
    old = {
        "word_embeddings": tensors["roberta.embeddings.word_embeddings.weight"],
        "decoder_bias": tensors["lm_head.bias"],
    }
    size = len(tokenizer.pieces)
    assert model.vocab_size == len(grown.pieces) == size + 12
    row = {piece: number for number, piece in enumerate(grown.pieces)}
    assert row["<mask>"] == size + 11
    for name, table in old.items():
        ours = np.asarray(params[name])
        np.testing.assert_array_equal(ours[: size - 1], table[:-1])
        np.testing.assert_array_equal(ours[row["<mask>"]], table[-1])
        assert not ours[model.vocab_size :].any()

    words, bias = np.asarray(params["word_embeddings"]), np.asarray(params["decoder_bias"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    drawn = [row["☃☃"], row[grown.pieces[-3]]]
    assert "☃" in grown.pieces[-3]
    for piece in grown.pieces[size - 1 : -3]:
        spelled = [i + 1 for i in processor.encode(piece[1:])]  # it puts the ▁ in front itself
        assert len(spelled) >= 2
        if new_pieces == "normal":
            drawn.append(row[piece])
            continue
        means = [old[name][spelled].astype(np.float64).mean(axis=0) for name in old]
        np.testing.assert_allclose(words[row[piece]], means[0], atol=1e-6)
        scores = [processor.get_score(i - 1) for i in spelled]
        np.testing.assert_allclose(bias[row[piece]], means[1] - 30 - np.mean(scores), rtol=1e-5)
    assert len(drawn) == (2 if new_pieces == "mean" else 12)
    assert 0.01 < words[drawn].std() < 0.03 and not bias[drawn].any()
    assert len(np.unique(words[drawn], axis=0)) == len(drawn)


def test_what_new_pieces_begin_as_is_said(plain, tokenizer, grown):
    pretrained = open_pretrained(plain)
    config, rows = ModelConfig(**pretrained.fields), vocabulary_rows(pretrained, grown)
    model = LangSamp(config, grown.vocab_size, 0, 0)
    assert "new pieces: 12" in describe(pretrained, model, rows, EMPTY, InitConfig())
    assert vocabulary_rows(pretrained, tokenizer) is None


# Sharded


@pytest.mark.slow
def test_sharded_parameters_are_the_same(plain, grown, tmp_path, import_folder):
    """On 8 devices, each part in chunks: cut along both axes, along one into eight, and whole."""
    root, file = Path(__file__).parents[2], tmp_path / "tokenizer.model"
    file.write_bytes(grown.model)
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    command = [sys.executable, __file__, str(tmp_path), str(plain), str(file)]
    process = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    facts = {
        name: json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("sharded", "narrow", "replicated")
    }
    padded = -(-grown.vocab_size // 128) * 128
    assert {found["devices"] for found in facts.values()} == {8}
    assert facts["sharded"]["part"] == [padded // 2, 16]
    assert facts["narrow"]["part"] == [padded // 8, 32]
    assert facts["replicated"]["part"] == [padded, 32]

    here = flat(import_folder(plain, grown, NAMES, placement="output")[1])
    assert np.abs(here["conditioning/language"]).max() > 0
    for name in facts:
        with np.load(tmp_path / f"{name}.npz") as there:
            assert set(there.files) == here.keys()
            for path, leaf in here.items():
                np.testing.assert_array_equal(there[path], leaf, err_msg=f"{name} {path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
