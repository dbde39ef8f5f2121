"""New rows for a full model: what they begin as, and that nothing else changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.packing.prepare import prepare
from langsamp_jax.cli.main import main
from langsamp_jax.huggingface.add_languages import add_languages
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.export import export_run
from langsamp_jax.training.run import open_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# The corpus has qaa in both scripts, qac in Latin, and qab, qad and qae in Cyrillic.
LANGUAGES, SCRIPTS = ["qaa", "qab", "qac", "qad", "qae"], ["Cyrl", "Latn"]
TABLES = [f"roberta.embeddings.{kind}_type_embeddings.weight" for kind in ("lang", "script")]


@pytest.fixture(scope="module")
def full(store_path, make_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "model"
    export_run(make_run(store_path), folder, full=True)
    return folder


@pytest.fixture
def add(full: Path, tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray, np.ndarray]]:
    """``add(names, start)``: the folder, and the new rows of the two tables."""

    def add(names: str, start: str, **options) -> tuple[Path, np.ndarray, np.ndarray]:
        folder = tmp_path / f"more{len(list(tmp_path.iterdir()))}"
        add_languages(full, names.split(), start, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        return folder, tensors[TABLES[0]][5:], tensors[TABLES[1]][2:]

    return add


@pytest.fixture(scope="module")
def tables(full: Path) -> dict[str, np.ndarray]:
    """Code -> its vector, in double precision."""
    tensors = load_file(full / "model.safetensors")
    languages, scripts = (tensors[name].astype(np.float64) for name in TABLES)
    assert languages.shape == (5, 32) and scripts.shape == (2, 32)
    return dict(zip(LANGUAGES + SCRIPTS, [*languages, *scripts], strict=True))


def mean(tables, codes: str) -> np.ndarray:
    return np.mean([tables[code] for code in codes.split()], axis=0)


def test_nothing_else_changes(full, add):
    folder, _, _ = add("zho_Grek deu_Latn", "random")
    before, after = (load_file(each / "model.safetensors") for each in (full, folder))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        rows = len(tensor) if name in TABLES else None
        np.testing.assert_array_equal(after[name][:rows], tensor)
        assert rows is not None or after[name].shape == tensor.shape

    old, new = (json.loads((each / "config.json").read_text()) for each in (full, folder))
    assert new.pop("languages") == [*old.pop("languages"), "deu", "zho"]
    assert new.pop("scripts") == [*old.pop("scripts"), "Grek"]
    assert new == old
    old, new = (json.loads((each / "inventory.json").read_text()) for each in (full, folder))
    assert (new["languages"], new["scripts"]) == (LANGUAGES + ["deu", "zho"], SCRIPTS + ["Grek"])
    assert new["language_scripts"] == sorted([*old["language_scripts"], "zho_Grek", "deu_Latn"])
    with np.load(folder / "language_script_vectors.npz") as arrays:
        for kind, table in (("language", TABLES[0]), ("script", TABLES[1])):
            assert arrays[f"{kind}s"].tolist() == new[f"{kind}s"]
            np.testing.assert_array_equal(arrays[f"{kind}_vectors"], after[table])
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith((full / "README.md").read_text("utf-8")) and "| deu | 5 |" in card
    written = {"config.json", "inventory.json", "language_script_vectors.npz", "model.safetensors"}
    written.add("README.md")
    assert {file.name for file in folder.iterdir()} == {file.name for file in full.iterdir()}
    for file in full.iterdir():
        if file.name not in written:
            assert (folder / file.name).read_bytes() == file.read_bytes()


# What rows begin as


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        ("deu_Latn", ["qaa qac"]),
        ("rus_Cyrl", ["qaa qab qad qae"]),
        ("deu_Latn rus_Cyrl", ["qaa qac", "qaa qab qad qae"]),
        ("srp_Cyrl srp_Latn", ["qaa qab qac qad qae"]),
    ],
)
def test_mean_of_the_languages_of_the_same_script(add, tables, names, sources):
    _, languages, scripts = add(names, "script")
    expected = [mean(tables, codes) for codes in sources]
    np.testing.assert_allclose(languages, expected, rtol=0, atol=1e-7)
    assert len(scripts) == 0


def test_new_script_is_the_mean_of_all(add, tables):
    _, languages, scripts = add("qab_Grek", "script")
    np.testing.assert_allclose(scripts, [mean(tables, "Cyrl Latn")], rtol=0, atol=1e-7)
    assert len(languages) == 0


@pytest.fixture
def families(tmp_path: Path) -> Path:
    file = tmp_path / "families.tsv"
    lines = ["qaa\tEast", "qad\tEast", "qab\tWest", "deu\tEast", "rus\tWest", "jpn\tJaponic"]
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_mean_of_the_family(add, tables, families):
    _, languages, scripts = add("deu_Latn rus_Grek", "family", families=families)
    np.testing.assert_allclose(
        languages, [mean(tables, "qaa qad"), mean(tables, "qab")], rtol=0, atol=1e-7
    )
    np.testing.assert_allclose(scripts, [mean(tables, "Cyrl Latn")], rtol=0, atol=1e-7)


def test_copy_of_another_language(add, tables):
    _, languages, scripts = add("deu_Grek ell_Grek", "qad_Cyrl")
    np.testing.assert_array_equal(languages, [tables["qad"]] * 2)
    np.testing.assert_array_equal(scripts, [tables["Cyrl"]])


def test_random_rows_are_those_of_the_seed(add):
    names = " ".join(f"qb{letter}_Grek" for letter in "abcdefghijklmnop")
    (_, *first), (_, *same), (_, *other) = (add(names, "random", seed=seed) for seed in (1, 1, 2))
    rows = np.concatenate(first)
    assert rows.shape == (17, 32) and len(np.unique(rows.round(7), axis=0)) == 17
    assert abs(rows.mean()) < 0.003 and 0.018 < rows.std() < 0.022
    np.testing.assert_array_equal(np.concatenate(same), rows)
    assert not (np.concatenate(other) == rows).any()


def test_what_rows_began_as_is_said(full, tmp_path, capsys):
    call = ["languages", "add", "--model", full, "--output", tmp_path / "more", "--start"]
    assert main([*map(str, call), "script", "--languages", "deu_Latn", "qab_Grek"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["language", "5", "deu", "mean", "of", "2"] in lines
    assert ["script", "2", "Grek", "mean", "of", "2"] in lines


# The result is a model


def test_transformers_knows_the_new_language(full, add, load_strictly):
    folder, _, _ = add("deu_Grek", "qad_Cyrl")
    ids = torch.arange(4, 20)[None]
    new, old = load_strictly(folder), load_strictly(full)
    donor = old(ids, language="qad_Cyrl").logits
    torch.testing.assert_close(new(ids, language="deu_Grek").logits, donor, atol=0, rtol=0)
    assert (donor - old(ids, language="qaa_Latn").logits).abs().max() > 0.1
    for name in ("qaa_Latn", "qae_Cyrl"):
        torch.testing.assert_close(
            new(ids, language=name).logits, old(ids, language=name).logits, atol=0, rtol=0
        )
    with pytest.raises(ValueError, match="no language 'deu'"):
        old(ids, language="deu_Latn")


@pytest.mark.slow
def test_training_takes_the_new_rows(add, corpus, tokenizer_file, tmp_path, capsys):
    folder, languages, scripts = add("ell_Grek", "qad_Cyrl")
    text = tmp_path / "text"
    text.mkdir()
    shutil.copy(corpus / "qac_Latn.txt", text)
    shutil.copy(corpus / "qad_Cyrl.txt", text / "ell_Grek.txt")
    prepare(text, tokenizer_file, tmp_path / "store", 32, 0.0)
    call = ["train", "--data", tmp_path / "store", "--output", tmp_path / "run"]
    call += ["--init_from", folder, "--gin.optimizer.learning_rate=1e-30"]
    settings = ["num_steps=1", "global_batch_size=8"]
    assert main([*map(str, call), *(f"--gin.train.{setting}" for setting in settings)]) == 0
    assert "new languages" not in capsys.readouterr().err

    run = open_run(tmp_path / "run")
    rows = run.inventory.languages, run.inventory.scripts
    assert rows == ((*LANGUAGES, "ell"), (*SCRIPTS, "Grek"))
    assert {"ell_Grek", "qab_Cyrl"} < set(run.inventory.language_scripts)
    assert run.inventory == open_pretrained(folder).inventory
    _, params = restore_params(run)
    np.testing.assert_array_equal(params["conditioning"]["language"][5:], languages)
    np.testing.assert_array_equal(params["conditioning"]["script"][2:], scripts)


def test_published_tables(full, tmp_path):
    """No inventory and no names beside them: both are known."""
    folder = Path(shutil.copytree(full, tmp_path / "published"))
    (folder / "inventory.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("languages", "scripts")}
    config |= {"model_type": "xlm-roberta", "torch_dtype": "float16", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["roberta.embeddings.token_type_embeddings.weight"]
    rng = np.random.default_rng(0)
    for name, size in zip(TABLES, (610, 30), strict=True):
        tensors[name] = rng.normal(0, 0.1, (size, 32)).astype("f")
    save_file(tensors, folder / "model.safetensors")

    add_languages(folder, ["qaa_Thai"], "script", tmp_path / "more")
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    assert config["model_type"] == "langsamp-xlm-roberta" and config["dtype"] == "float32"
    inventory = open_pretrained(tmp_path / "more").inventory
    published = Inventory.published()
    assert inventory == published.extended(["qaa_Thai"])
    assert inventory.languages == (*published.languages, "qaa")
    thai = {name[:3] for name in Inventory.published().language_scripts if name.endswith("Thai")}
    rows = [published.languages.index(language) for language in thai]
    found = load_file(tmp_path / "more" / "model.safetensors")[TABLES[0]]
    assert len(rows) > 0
    np.testing.assert_allclose(found[610], tensors[TABLES[0]][rows].mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(found[:610], tensors[TABLES[0]])


# Bad input


@pytest.mark.parametrize(
    ("names", "start", "message"),
    [
        ("dex_Latn", "script", "'dex' is not an ISO 639-3 language code"),
        ("deu_Latin", "script", "not of the form iso639-3_Script"),
        ("deu_Lxtn", "script", "did you mean Latn"),
        ("qaa_Latn qab_Cyrl", "script", "has rows for qaa_Latn, qab_Cyrl already"),
        ("deu_Latn", "qax_Latn", "no language 'qax'; did you mean qa"),
        ("deu_Latn", "mean", "'mean' is not of the form"),
        ("deu_Grek", "script", "no language of the script of deu (Grek)"),
        ("deu_Latn", "family", "--families"),
        ("deu_Latn", "script --families FILE", "--families"),
        ("jpn_Latn", "family --families FILE", "family of jpn (Japonic)"),
        ("kor_Latn", "family --families FILE", "family of kor (unknown)"),
    ],
)
def test_refused(full, families, tmp_path, capsys, names, start, message):
    options = [str(families) if word == "FILE" else word for word in start.split()]
    call = ["languages", "add", "--model", str(full), "--output", str(tmp_path / "more")]
    status = main([*call, "--languages", *names.split(), "--start", *options])
    line = capsys.readouterr().err
    assert status == 2 and line.count("\n") == 1 and message in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["families.tsv"]


@pytest.mark.parametrize(
    "text", [b"qaa East\n", b"qaa\tEast\textra\n", b"qaa\tEast\n\n", b"\xff\xfe\n", None]
)
def test_families_that_cannot_be_read(full, tmp_path, capsys, text):
    file = tmp_path / "families.tsv"
    if text is not None:
        file.write_bytes(text)
    call = ["languages", "add", "--model", full, "--output", tmp_path / "more", "--families", file]
    status = main([*map(str, call), "--languages", "deu_Latn", "--start", "family"])
    line = capsys.readouterr().err
    assert status == 2 and line.count("\n") == 1 and str(file) in line, line
    assert not (tmp_path / "more").exists()


def test_folder_that_is_no_full_model(trained_run, full, tmp_path, capsys):
    export_run(trained_run, tmp_path / "universal")
    (tmp_path / "broken").mkdir()
    shutil.copytree(full, tmp_path / "damaged")
    (tmp_path / "damaged" / "inventory.json").write_text("{")
    folders = {
        "universal": "no language and script tables",
        "broken": "no Hugging Face model",
        "damaged": "inventory.json is damaged",
    }
    for folder, message in folders.items():
        call = ["languages", "add", "--model", tmp_path / folder, "--output", tmp_path / "more"]
        assert main([*map(str, call), "--languages", "deu_Latn", "--start", "script"]) == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1, line
        assert not (tmp_path / "more").exists()


def test_output_that_exists_is_left_alone(full, capsys):
    before = {file.name: file.read_bytes() for file in full.iterdir()}
    call = ["languages", "add", "--model", full, "--output", full, "--languages", "deu_Latn"]
    assert main([*map(str, call), "--start", "script"]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in full.iterdir()} == before
