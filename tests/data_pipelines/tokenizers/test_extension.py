"""Tokenizer extension: the old pieces stay as they are, the new ones fit, all readers agree."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data_pipelines.synthetic import grammar
from data_pipelines.tokenizers.extension import Extension, extend_tokenizer
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.cli import main
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer


def words(letters: str, number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), rng.integers(2, 6))) for _ in range(number)]


def sentences(vocabulary: list[str], number: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(vocabulary, 6)) for _ in range(number)]


OLD_WORDS = words(grammar.ALPHABET, 400, 0)
NEW_WORDS = words(grammar.ALPHABET, 300, 1)
CYRILLIC_WORDS = words(grammar.SCRIPTS["Cyrl"], 150, 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_corpus) -> Path:
    """300 pieces of one language in Latin script."""
    folder = tmp_path_factory.mktemp("base")
    corpus = write_corpus(folder / "corpus", qaa_Latn=sentences(OLD_WORDS, 400))
    train_tokenizer(corpus, 300, folder / "base.model")
    return folder / "base.model"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_corpus) -> Path:
    """A second Latin language, and one in a script that the base does not know."""
    return write_corpus(
        tmp_path_factory.mktemp("new") / "corpus",
        qab_Latn=sentences(NEW_WORDS, 300),
        qac_Cyrl=sentences(CYRILLIC_WORDS, 60),
    )


@pytest.fixture(scope="module")
def output(base, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extension") / "output"
    extend_tokenizer(base, corpus, 150, folder)
    return folder


@pytest.fixture(scope="module")
def xlmr(shared_data) -> Path:
    return shared_data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model"


@pytest.fixture(scope="module")
def extended_xlmr(xlmr, shared_data, tmp_path_factory, write_corpus) -> Path:
    """By 700 pieces for languages in scripts that XLM-R knows and does not know."""
    folder = tmp_path_factory.mktemp("xlmr")
    texts = {
        name: (shared_data / "udhr" / "text" / f"{name}.txt").read_text("utf-8").splitlines()
        for name in ("bod_Tibt", "chr_Cher", "vai_Vaii", "wol_Latn")
    }
    extend_tokenizer(xlmr, write_corpus(folder / "corpus", **texts), 700, folder / "output")
    return folder / "output"


def encoded(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    ids, lengths = tokenizer.encode(lines)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def proto(file: Path) -> ModelProto:
    return ModelProto.FromString(file.read_bytes())


def test_old_pieces_keep_ids_and_scores_and_mask_stays_last(base, output):
    old, new = load_tokenizer(base).pieces, load_tokenizer(output / "tokenizer.model").pieces
    assert len(new) == len(set(new)) == len(old) + 150
    assert new[: len(old) - 1] == old[:-1]
    assert old[-1] == new[-1] == "<mask>"
    before, after = proto(base), proto(output / "tokenizer.model")
    assert after.pieces[: len(before.pieces)] == before.pieces
    assert after.normalizer_spec == before.normalizer_spec


def test_same_input_same_files(base, corpus, output, tmp_path):
    extend_tokenizer(base, corpus, 150, tmp_path / "again")
    files = [file.relative_to(output) for file in output.rglob("*") if file.is_file()]
    assert {"tokenizer.model", "row_map.tsv"} < {str(file) for file in files}
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (output / file).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_the_new_words_get_pieces(base, output):
    """Fewer tokens in both new languages, nothing unknown."""
    old, new = load_tokenizer(base), load_tokenizer(output / "tokenizer.model")
    latin, cyrillic = sentences(NEW_WORDS, 50, 9), sentences(CYRILLIC_WORDS, 50, 9)
    before, after = old.encode(latin)[1].sum(), new.encode(latin)[1].sum()
    assert after < 0.8 * before
    assert old.vocabulary.unk_id in old.encode(cyrillic)[0]
    ids, lengths = new.encode(cyrillic)
    assert new.vocabulary.unk_id not in ids
    letter_by_letter = sum(len("<▁" + line + ">") for line in cyrillic)
    assert lengths.sum() < 0.8 * letter_by_letter


def kept_and_changed(base: Path, extended: Path, lines: list[str]) -> tuple[int, int]:
    """Lines without and with a new piece, checked: those without have their old ids."""
    old, new = load_tokenizer(base), load_tokenizer(extended)
    kept = changed = 0
    for before, after in zip(encoded(old, lines), encoded(new, lines), strict=True):
        if max(after) >= old.vocabulary.mask_id:
            changed += 1
        else:
            assert after == before
            kept += 1
    return kept, changed


def test_text_without_new_pieces_keeps_its_ids(base, output):
    """Unknown characters are in it too: their price has not changed either."""
    mixed = [f"{line} 漢字{line[:3]}ᚠ" for line in sentences(OLD_WORDS, 300, 5)]
    lines = mixed + sentences(OLD_WORDS + NEW_WORDS, 300, 5)
    kept, changed = kept_and_changed(base, output / "tokenizer.model", lines)
    assert kept > 100 and changed > 100


@pytest.mark.slow
def test_old_languages_of_xlmr_keep_their_ids(xlmr, extended_xlmr, shared_data):
    lines = []
    for name in ("eng_Latn", "deu_Latn", "rus_Cyrl", "arb_Arab", "zho_Hans", "wol_Latn"):
        file = shared_data / "flores_sib200" / "text" / f"{name}.txt"
        lines += file.read_text("utf-8").splitlines()[:150]
    kept, changed = kept_and_changed(xlmr, extended_xlmr / "tokenizer.model", lines)
    assert kept > 0.8 * len(lines) and changed > 50  # most lines in Wolof


@pytest.mark.slow
def test_xlmr_knows_every_character_of_the_new_scripts(extended_xlmr, shared_data):
    tokenizer = load_tokenizer(extended_xlmr / "tokenizer.model")
    for name in ("bod_Tibt", "chr_Cher", "vai_Vaii"):
        lines = (shared_data / "udhr" / "text" / f"{name}.txt").read_text("utf-8").splitlines()
        ids, _ = tokenizer.encode(lines)
        assert np.mean(ids == tokenizer.vocabulary.unk_id) < 0.001


def agreement(folder: Path, lines: list[str]) -> None:
    """SentencePiece itself, our ids, and transformers on the folder written for it."""
    transformers = pytest.importorskip("transformers")
    model = folder / "tokenizer.model"
    ours = encoded(load_tokenizer(model), lines)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert ours == [[0, *(i + 1 if i else 3 for i in processor.encode(line)), 2] for line in lines]
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "huggingface")
    assert theirs(lines)["input_ids"] == ours
    assert len(theirs) == load_tokenizer(model).vocab_size == theirs.mask_token_id + 1


def test_the_tokenizers_agree(output):
    lines = sentences(OLD_WORDS + NEW_WORDS + CYRILLIC_WORDS, 300, 3)
    agreement(output, [*lines, "", "漢字 and more", "  two  spaces "])


@pytest.mark.slow
def test_the_tokenizers_agree_on_xlmr(extended_xlmr, shared_data):
    lines = []
    for name in ("bod_Tibt", "chr_Cher", "vai_Vaii", "wol_Latn", "eng_Latn", "rus_Cyrl"):
        lines += (shared_data / "udhr" / "text" / f"{name}.txt").read_text("utf-8").splitlines()
    agreement(extended_xlmr, lines)


def row_map(folder: Path) -> list[tuple[int, str, list[int]]]:
    lines = (folder / "row_map.tsv").read_text("utf-8").split("\n")
    assert lines[0] == "id\tpiece\told_ids" and lines[-1] == ""
    rows = [line.split("\t") for line in lines[1:-1]]
    return [(int(i), piece, [int(old) for old in ids.split()]) for i, piece, ids in rows]


def test_the_row_map_says_where_rows_come_from(base, output):
    old = load_tokenizer(base).pieces
    new = load_tokenizer(output / "tokenizer.model").pieces
    rows = row_map(output)
    assert [(i, piece) for i, piece, _ in rows] == list(enumerate(new))
    for _, piece, ids in rows[: len(old) - 1] + rows[-1:]:
        assert [old[i] for i in ids] == [piece]
    spelled = [(piece, [old[i] for i in ids]) for _, piece, ids in rows[len(old) - 1 : -1]]
    latin = [(piece, parts) for piece, parts in spelled if re.fullmatch("▁?[a-z]+", piece)]
    assert len(latin) > 30
    for piece, parts in latin:
        assert "".join(parts) == piece and len(parts) > 1
    cyrillic = [parts for piece, parts in spelled if re.search("[а-яһјԝ]", piece)]
    assert len(cyrillic) > 30
    assert not any(cyrillic)


def test_pieces_are_written_as_the_base_normalises(base, tmp_path, write_corpus):
    """Full-width letters, a ligature and decomposed accents: no piece could match them as such."""
    wide = [line.translate({ord(c): ord(c) + 0xFEE0 for c in "aeiou"}) for line in NEW_WORDS]
    lines = [f"ﬁ {line} e\u0301te\u0301" for line in sentences(wide, 200)]
    extend_tokenizer(
        base, write_corpus(tmp_path / "corpus", qab_Latn=lines), 40, tmp_path / "output"
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base))
    old = set(load_tokenizer(base).pieces)
    tokenizer = load_tokenizer(tmp_path / "output" / "tokenizer.model")
    new = [piece for piece in tokenizer.pieces if piece not in old]
    assert len(new) == 40 and any("é" in piece for piece in new)
    for piece in new:
        assert processor.normalize(piece.replace("▁", " ")) == "▁" + piece.removeprefix("▁")


def test_characters_come_first(base, tmp_path, refused, write_corpus):
    """Every language-script's own, however little of all the text it is."""
    small = ["ᚠᚢᚦ ᚨᚱ"] * 3
    corpus = write_corpus(
        tmp_path / "corpus", qab_Latn=sentences(NEW_WORDS, 3000), qac_Runr=small, qad_Latn=["ß"]
    )
    message = refused(extend_tokenizer, base, corpus, 5, tmp_path / "output", 1)
    assert message.startswith("--new_pieces 5: 6 characters of ")
    assert not (tmp_path / "output").exists()
    extension = extend_tokenizer(base, corpus, 6, tmp_path / "output", 1)
    assert set(extension.tokenizer.pieces[-7:-1]) == set("ᚠᚢᚦᚨᚱß")


def test_no_more_pieces_than_the_text_gives(base, tmp_path, refused, write_corpus):
    corpus = write_corpus(tmp_path / "corpus", qab_Latn=sentences(NEW_WORDS[:9], 50))
    message = refused(extend_tokenizer, base, corpus, 5000, tmp_path / "output")
    found = re.fullmatch(r"--new_pieces 5000: the text of .* gives at most (\d+)", message)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    most = int(found.group(1))
    extension = extend_tokenizer(base, corpus, most, tmp_path / "output")
    assert extension.tokenizer.vocab_size == load_tokenizer(base).vocab_size + most


def test_a_text_of_known_pieces_asks_for_a_larger_model(base, tmp_path, write_corpus):
    """Most pieces of the first model are old ones, so a second is trained."""
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=sentences(OLD_WORDS + NEW_WORDS[:20], 400))
    extension: Extension = extend_tokenizer(base, corpus, 60, tmp_path / "output")
    assert extension.tokenizer.vocab_size == load_tokenizer(base).vocab_size + 60


def test_an_extension_can_be_extended(output, tmp_path, write_corpus):
    """And the ids of the first extension stay."""
    corpus = write_corpus(tmp_path / "corpus", qad_Latn=sentences(words("ßþðæø", 40, 4), 100))
    extension = extend_tokenizer(output / "tokenizer.model", corpus, 20, tmp_path / "output")
    first = load_tokenizer(output / "tokenizer.model").pieces
    assert extension.tokenizer.pieces[: len(first) - 1] == first[:-1]
    assert extension.rows.carried[-1] == len(first) - 1


def test_another_kind_of_base_is_refused(base, corpus, tmp_path, shared_data, refused):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(OLD_WORDS, 200)),
        model_writer=model,
        model_type="bpe",
        vocab_size=100,
        minloglevel=2,
    )
    bpe = tmp_path / "bpe.model"
    bpe.write_bytes(model.getvalue())
    assert refused(extend_tokenizer, bpe, corpus, 50, tmp_path / "output").startswith(
        f"{bpe} is no unigram model"
    )
    vocabulary = shared_data / "tokenizers" / "mbert" / "vocab.txt"
    assert "is no SentencePiece model" in refused(
        extend_tokenizer, vocabulary, corpus, 50, tmp_path / "output"
    )
    assert "not found" in refused(
        extend_tokenizer, tmp_path / "none.model", corpus, 50, tmp_path / "output"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bpe.model"]


def test_bad_options_are_named(base, corpus, tmp_path, refused):
    output = tmp_path / "output"
    assert refused(extend_tokenizer, base, corpus, 0, output).startswith("--new_pieces 0: expected")
    assert refused(extend_tokenizer, base, corpus, 50, output, -1).startswith(
        "--temperature -1: expected"
    )
    assert refused(extend_tokenizer, base, corpus, 50, output, max_sentences=0).startswith(
        "--sentences 0: expected"
    )
    assert str(tmp_path / "none") in refused(extend_tokenizer, base, tmp_path / "none", 50, output)
    output.mkdir()
    (output / "mine").write_text("kept")
    assert str(output) in refused(extend_tokenizer, base, corpus, 50, output)
    assert [path.name for path in output.iterdir()] == ["mine"]


def test_the_command_says_what_became_of_the_rows(base, corpus, output, tmp_path, capsys):
    where = tmp_path / "output"
    options = {"base": base, "corpus": corpus, "new_pieces": 150, "output": where}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert main.main(["tokenizer", "extend", *arguments]) == 0
    assert (where / "tokenizer.model").read_bytes() == (output / "tokenizer.model").read_bytes()
    shown = capsys.readouterr().out
    rows = row_map(where)[301:-1]
    several = sum(bool(ids) for _, _, ids in rows)
    assert f"{where}: 302 ids before, 452 now" in shown
    assert f"302 rows are carried over, {several} are a mean of old ones" in shown
    assert f"{150 - several} have an unknown part" in shown
