"""Tagged words: every format gives the same sentences, and bad lines are named."""

import csv

import pytest

from langsamp_jax.evaluation.datasets.tagging import UPOS, read_tagging_task

PLAIN = "Anna\tB-PER\nsings\tO\n\nin\tO\nOslo\tB-LOC\n\n"
POS = "Anna\tPROPN\nsings\tVERB\n\nin\tADP\nOslo\tPROPN\n"
WORDS = [["Anna", "sings"], ["in", "Oslo"]]
CONLLU = """# sent_id = 1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
5.1\tvamos\tir\tVERB\t_\t_\t_\t_\t1:conj\t_

# sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_

"""
IOB2 = (
    "# sent_id = 1\n# text = # Anna sings\n1\t#\tO\t-\t-\n2\tAnna\tB-PER\t-\tx\n3\tsings\tO\n\n"
    "# sent_id = 2\n1\tOslo\tB-LOC\t-\tx\n"
)


def source(text, suffix=".tsv"):
    return {f"eng_Latn/{split}{suffix}": text for split in ("train", "dev", "test")}


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        (PLAIN, ".tsv"),
        (PLAIN, ".txt"),
        (PLAIN, ""),
        (PLAIN.replace("\n", "\r\n"), ".tsv"),
        ("\n" + PLAIN.replace("\n\n", "\n \n\n"), ".tsv"),
        (PLAIN.replace("\t", " "), ""),
        ("en:" + PLAIN.replace("\n\n", "\n\nen:").removesuffix("en:").replace("\ns", "\nen:s")
         .replace("\nO", "\nen:O"), ""),
    ],
    ids=["tsv", "txt", "bare", "crlf", "spaced", "space", "prefixed"],
)  # fmt: skip
def test_word_and_tag(text, suffix, tmp_path, write_files):
    data = read_tagging_task(write_files(tmp_path, source(text, suffix)), "ner")
    assert data.train.words == data.dev.words == data.test["eng_Latn"].words == WORDS
    assert data.train.tags == [["B-PER", "O"], ["O", "B-LOC"]]
    assert data.labels == ("O", "B-LOC", "B-PER")


def test_a_prefix_that_not_all_words_have_is_text(tmp_path, write_files):
    text = "re:invent\tO\n\nre:do\tO\nit\tO\n"
    assert read_tagging_task(write_files(tmp_path, source(text)), "ner").train.words == [
        ["re:invent"],
        ["re:do", "it"],
    ]


def test_words_keep_what_is_in_them(tmp_path, write_files):
    text = "10 000\tNUM\n#\tSYM\n\u2028\tX\n-\tPUNCT\n"
    data = read_tagging_task(write_files(tmp_path, source(text)), "pos")
    assert data.train.words == [["10 000", "#", "\u2028", "-"]]
    spaced = "New York B-LOC\n"
    data = read_tagging_task(write_files(tmp_path, source(spaced)), "ner")
    assert data.train.words == [["New York"]]


def test_conllu_is_read_in_syntactic_words(tmp_path, write_files):
    data = read_tagging_task(write_files(tmp_path, source(CONLLU, ".conllu")), "pos")
    assert data.train.words == [["Vamos", "nos", "a", "el", "mar"], ["#"]]
    assert data.train.tags == [["VERB", "PRON", "ADP", "DET", "NOUN"], ["SYM"]]
    assert data.labels == UPOS and len(UPOS) == 17


def test_iob2_of_universal_ner(tmp_path, write_files):
    data = read_tagging_task(write_files(tmp_path, source(IOB2, ".iob2")), "ner")
    assert data.train.words == [["#", "Anna", "sings"], ["Oslo"]]
    assert data.train.tags == [["O", "B-PER", "O"], ["B-LOC"]]


def test_treebanks_are_read_one_after_the_other(tmp_path, write_files):
    files = source(POS) | {
        "spa_Latn/UD_Spanish-PUD/es_pud-ud-test.conllu": CONLLU,
        "spa_Latn/UD_Spanish-GSD/es_gsd-ud-test.conllu": "1\tSí\t_\tINTJ\t_\t_\t_\t_\t_\t_\n",
        "spa_Latn/UD_Spanish-GSD/es_gsd-ud-train.conllu": "not read",
        "spa_Latn/UD_Spanish-GSD/stats-test.xml": "not read",
        "deu_Latn/GSD/train.tsv": POS,
        "deu_Latn/contest.tsv": "no test set",
        "README.txt": "x",
    }
    data = read_tagging_task(write_files(tmp_path, files), "pos")
    assert data.test["spa_Latn"].words[0] == ["Sí"] and len(data.test["spa_Latn"].words) == 3
    assert data.skipped == {"deu_Latn": f"{tmp_path / 'deu_Latn'} has no test set"}


def test_treebanks_are_read_by_name(tmp_path, write_files):
    names = ["PUD", "GSD", "AnCora", "COSER", "Zed", "B", "M", "1"]
    files = {f"spa_Latn/{name}/test.tsv": f"{name}\tX\n" for name in names}
    data = read_tagging_task(write_files(tmp_path, source(POS) | files), "pos")
    assert data.test["spa_Latn"].words == [[name] for name in sorted(names)]


def test_two_files_of_a_split_are_refused(tmp_path, refused, write_files):
    files = source(POS) | {"deu_Latn/test.tsv": POS, "deu_Latn/test.conllu": CONLLU}
    data = read_tagging_task(write_files(tmp_path, files), "pos")
    assert "several test sets, test.conllu and test.tsv; keep one" in data.skipped["deu_Latn"]
    write_files(tmp_path, {"eng_Latn/dev.txt": POS})
    assert "several dev sets" in refused(read_tagging_task, tmp_path, "pos")


BAD = {
    "unknown": ("in\tADP\nOslo\tCITY\n", ".tsv", "line 2: 'CITY' is none of ADJ, ADP, "),
    "no tag": ("in\n", ".tsv", "line 1: expected word and tag, with tabs between"),
    "three": ("in\tADP\n\na\tDET\tx\n", ".tsv", "line 3: expected word and tag"),
    "no word": ("\tADP\n", ".tsv", "line 1: expected word and tag"),
    "empty": ("\n\n", ".tsv", " holds no sentence"),
    "not UTF-8": (b"caf\xe9\tNOUN\n", ".tsv", "line 1: not UTF-8"),
    "no UPOS": ("1\ta\ta\t_\t_\t_\t_\t_\t_\t_\n", ".conllu", "line 1: '_' is none of ADJ"),
    "short": ("1\ta\ta\tDET\n", ".conllu", "line 1: expected the columns of CoNLL-U"),
    "no id": ("a" + "\tNOUN" * 9 + "\n", ".conllu", "line 1: expected the columns of CoNLL-U"),
}


@pytest.mark.parametrize("problem", BAD)
def test_another_language_is_skipped_and_the_source_refused(
    problem, tmp_path, refused, write_files
):
    text, suffix, expected = BAD[problem]
    other = {f"deu_Latn/GSD/test{suffix}": text, "fra_Latn/test.tsv": POS}
    data = read_tagging_task(write_files(tmp_path, source(POS) | other), "pos")
    assert list(data.test) == ["eng_Latn", "fra_Latn"] and list(data.skipped) == ["deu_Latn"]
    file = tmp_path / "deu_Latn" / "GSD" / f"test{suffix}"
    assert data.skipped["deu_Latn"].startswith(str(file)) and expected in data.skipped["deu_Latn"]
    assert refused(read_tagging_task, write_files(tmp_path / "x", source(text, suffix)), "pos")
    for split in ("train", "dev", "test"):
        folder = write_files(tmp_path / split, source(POS))
        (folder / "eng_Latn" / f"{split}.tsv").unlink()
        write_files(folder, {f"eng_Latn/{split}{suffix}": text})
        message = refused(read_tagging_task, folder, "pos")
        file = folder / "eng_Latn" / f"{split}{suffix}"
        assert message.startswith(str(file)) and expected in message


def test_entities_that_the_source_does_not_know(tmp_path, refused, write_files):
    files = source(PLAIN) | {"deu_Latn/test.tsv": "Anna\tB-PER\nMaria\tI-PER\n"}
    files["eng_Latn/dev.tsv"] = "Anna\tB-PER\nMay\tI-PER\n"
    files["fra_Latn/test.tsv"] = "x\tO\n\nFinnois\tB-OTH\n"
    data = read_tagging_task(write_files(tmp_path, files), "ner")
    assert data.labels == ("O", "B-LOC", "B-PER", "I-PER")  # of train and dev
    assert list(data.test) == ["deu_Latn", "eng_Latn"]
    file = tmp_path / "fra_Latn" / "test.tsv"
    assert data.skipped == {
        "fra_Latn": f"{file}, line 3: 'B-OTH' is none of O, B-LOC, B-PER, I-PER"
    }
    write_files(tmp_path, {"eng_Latn/test.tsv": "x\tB-OTH\n"})
    assert "eng_Latn" in refused(read_tagging_task, tmp_path, "ner")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_marks(end, tmp_path, write_files):
    files = {name: "\ufeff" + text.replace("\n", end) for name, text in source(POS).items()}
    data = read_tagging_task(write_files(tmp_path, files), "pos")
    assert data == read_tagging_task(write_files(tmp_path / "plain", source(POS)), "pos")


def test_test_sets_in_another_form_are_named(tmp_path, write_files):
    files = source(POS) | dict.fromkeys(["deu_Latn/test.jsonl", "fra_Latn_test.csv"], "x")
    files |= dict.fromkeys(["eng_Latn/._test.tsv", "._ita_Latn_test.tsv"], "\0")
    data = read_tagging_task(write_files(tmp_path, files), "pos")
    assert data.skipped == {
        "deu_Latn": f"{tmp_path / 'deu_Latn'} has no test set; test.jsonl is not read, .tsv is",
        "fra_Latn": f"{tmp_path / 'fra_Latn'} has no test set; fra_Latn_test.csv is not read, "
        ".tsv is",
    }


def test_parts_of_speech_are_no_entities(tmp_path, refused, write_files):
    message = refused(read_tagging_task, write_files(tmp_path, source(POS)), "ner")
    assert "line 1: 'PROPN' is no BIO tag" in message


def test_uner_as_it_is(shared_data, refused):
    data = read_tagging_task(shared_data / "ner" / "uner", "ner", "srp_Latn")
    assert (len(data.test), data.skipped) == (11, {})
    assert "B-OTH" in data.labels and len(data.labels) == 9
    check_counts(shared_data / "ner" / "index.tsv", data, "srp_Latn")
    data = read_tagging_task(shared_data / "ner" / "uner", "ner", "dan_Latn")
    assert list(data.skipped) == ["srp_Latn"] and "B-OTH" in data.skipped["srp_Latn"]
    message = refused(read_tagging_task, shared_data / "ner" / "uner", "ner")
    assert "has no train set of the source language eng_Latn" in message


def test_universal_dependencies_as_they_are(shared_data):
    data = read_tagging_task(shared_data / "ud_pos", "pos")
    assert (len(data.test), data.skipped) == (33, {})
    check_counts(shared_data / "ud_pos" / "index.tsv", data, "eng_Latn")


def check_counts(index, data, name):
    """Sentences and words of every test set, and of the source's training data."""
    sets = {(language, "test"): tagged for language, tagged in data.test.items()}
    sets |= {(name, "train"): data.train, (name, "dev"): data.dev}
    expected = {key: [0, 0] for key in sets}
    with open(index, encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if (key := (row["lang_script"], row["split"])) in expected:
                expected[key][0] += int(row["sentences_kept"])
                expected[key][1] += int(row["tokens"])
    for key, tagged in sets.items():
        assert [len(tagged.words), sum(map(len, tagged.words))] == expected[key], key
        assert list(map(len, tagged.words)) == list(map(len, tagged.tags))
