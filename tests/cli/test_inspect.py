"""Inspection: what is shown is what the step is given, and the marks say what they should."""

import json
import re

import jax
import numpy as np
import pytest
from tokenizers import decoders

import langsamp_jax.training.loop
from langsamp_jax.cli.inspect_rows import Row, inspect_rows
from langsamp_jax.cli.inspect_view import legend, record, show
from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.loop import train

SIZE = 16
COLOUR = re.compile(r"\x1b\[[\d;]*m")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def trained_on(store_path, tmp_path, monkeypatch) -> tuple[Configs, list[tuple[np.ndarray, ...]]]:
    """A run, and what each of its steps was given: tokens, inputs, positions, weights."""
    given, mask_rows = [], langsamp_jax.objectives.masked_lm.mask_rows

    def spy(keys, tokens, *rest):
        masked = mask_rows(keys, tokens, *rest)
        seen = tokens, masked.inputs, masked.positions, masked.weights
        if len(tokens) == SIZE:  # not the validation, which takes half as many rows at once
            jax.debug.callback(lambda *arrays: given.append(arrays), *seen, ordered=True)
        return masked

    monkeypatch.setattr("langsamp_jax.objectives.masked_lm.mask_rows", spy)
    configs = Configs(
        TrainConfig(num_steps=3, global_batch_size=SIZE, accumulation_steps=2, seed=7),
        ModelConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_length=32,
        ),
    )
    train(Store(store_path), tmp_path / "run", configs)
    jax.effects_barrier()
    return configs, given


@pytest.mark.slow
def test_a_step_is_shown_as_the_trainer_was_given_it(trained_on, store_path):
    configs, given = trained_on
    assert len(given) == 3
    store, targets = Store(store_path), []
    for step, (tokens, inputs, positions, weights) in enumerate(given, 1):
        _, rows = inspect_rows(store, configs, None, step, "train", SIZE)
        assert np.array_equal([row.tokens for row in rows], tokens)
        assert np.array_equal([row.inputs for row in rows], inputs)
        hidden = [sorted(p[w].tolist()) for p, w in zip(positions, weights, strict=True)]
        assert [np.flatnonzero(row.hidden).tolist() for row in rows] == hidden
        assert [row.place for row in rows] == [*range(SIZE)]
        targets.append(hidden)
    assert targets[0] != targets[1] != targets[2]


@pytest.mark.slow
def test_rows_of_one_language_are_those_of_the_whole_batch(store_path):
    store, configs = Store(store_path), Configs(TrainConfig(num_steps=9, global_batch_size=SIZE))
    _, batch = inspect_rows(store, configs, None, 5, "train", SIZE)
    for name in {row.language for row in batch}:
        expected = [row for row in batch if row.language == name]
        for count in (1, SIZE):
            _, rows = inspect_rows(store, configs, name, 5, "train", count)
            assert len(rows) == min(count, len(expected))
            for row, same in zip(rows, expected, strict=False):
                assert (row.place, row.row) == (same.place, same.row)
                assert np.array_equal(row.inputs, same.inputs)
                assert np.array_equal(row.hidden, same.hidden)


def test_the_next_step_with_a_row_of_the_language_is_named(store_path):
    store, configs = Store(store_path), Configs(TrainConfig(num_steps=40, global_batch_size=1))
    sampler = configs.mixture.sampler(store.manifest, configs.train.seed, 40, 1)
    names = np.array(store.manifest.names)
    drawn = [names[sampler.batch(step, 1)[0][0]] for step in range(40)]
    for name in names:
        for step in range(1, 41):
            later = [other for other in range(step, 41) if drawn[other - 1] == name]
            if later[:1] == [step]:
                _, (row,) = inspect_rows(store, configs, name, step, "train", 1)
                assert row.language == name
                continue
            expected = f"is step {later[0]}$" if later else "none of the 40 steps planned"
            with pytest.raises(UserError, match=expected):
                inspect_rows(store, configs, name, step, "train", 1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_text_of_the_rows_is_the_text_of_the_corpus(split, store_path, corpus):
    store = Store(store_path)
    tokenizer, shown = store.tokenizer(), set()
    for name in store.manifest.names:
        lines = (corpus / f"{name}.txt").read_text("utf-8").splitlines()
        _, rows = inspect_rows(store, Configs(), name, None, split, 10**6)
        assert len(rows) == store.split(split).rows[store.manifest.names.index(name)]
        assert sum(len(row.tokens) for row in rows) <= store.manifest.counts[split][name].tokens
        for row in rows:
            assert len(row.tokens) + row.padding == 32
            if (found := record(row, tokenizer))["unknown"]:
                continue
            first, *others = found["lines"]
            assert any(first in line for line in lines)
            assert not others or any(line.startswith(others[-1]) for line in lines)
            assert set(others[:-1]) <= set(lines)
            shown |= set(others[:-1])
    assert len(shown) > 20


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_surfaces_are_what_the_library_decodes(kind, store_path, wordpiece_store, corpus):
    tokenizer = Store(store_path if kind == "sentencepiece" else wordpiece_store).tokenizer()
    lines = sorted(corpus.glob("*.txt"))[0].read_text("utf-8").splitlines()[:50]
    for line in lines:
        ids = tokenizer.encode([line])[0][1:-1].tolist()
        if kind == "sentencepiece":
            theirs = tokenizer._processor.decode([i - 1 for i in ids])
        else:
            backend = tokenizer._tokenizer
            backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
            theirs = backend.decode(ids)
        assert "".join(tokenizer.surfaces[i] for i in ids).strip() == theirs


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> Tokenizer:
    """Pieces in several scripts, among them a combining mark, an escape and a joiner."""
    file = tmp_path_factory.mktemp("hand") / "vocab.txt"
    pieces = ["A", "Haus", "##tür", "שלום", "क", "##\u093f", "\x1b[2J", "a\u202eb", "ب\u200cا"]
    file.write_text("\n".join([*SPECIAL, *pieces]), "utf-8")
    return load_tokenizer(file)


def row_of(tokenizer: Tokenizer, pieces: str, padding: int = 0) -> Row:
    """A row from ``piece``, ``piece>seen`` (hidden) and ``piece=`` (hidden, kept)."""
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    tokens, inputs, hidden = [], [], []
    for text in pieces.split():
        was, sign, seen = re.fullmatch(r"(.+?)(?:(>|=)(.*))?", text).groups()
        tokens.append(ids[was])
        inputs.append(ids[seen or was])
        hidden.append(sign is not None)
    return Row(
        "deu_Latn", 3, None, np.array(tokens), np.array(inputs), np.array(hidden, bool), padding
    )


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("[CLS] Haus ##tür A [SEP]", ["[CLS] Haustür A [SEP]"]),
        ("A [SEP] [CLS] Haus", ["... A [SEP]", "[CLS] Haus ..."]),
        ("[CLS] A [SEP] A", ["[CLS] A [SEP]", "... A ..."]),
        ("[SEP] [CLS]", ["...  [SEP]", "[CLS]  ..."]),
        ("A Haus>[MASK] ##tür>[MASK] A", ["... A [Haus][tür] A ..."]),
        ("A Haus>##tür A= ##tür=", ["... A [Haus>##tür] [A=][tür=] ..."]),
        ("A [UNK] A", ["... A[UNK] A ..."]),
        ("שלום שלום>שלום שלום>A", ["... שלום [שלום=] [שלום>A] ..."]),
        ("क>[MASK] ##ि क ##ि>[MASK] ##ि", ["... [क]◌ि क[◌ि]◌ि ..."]),
        ("A>##ि", ["... [A>##ि] ..."]),
        ("a\u202eb ب\u200cا", ["... a\\u202eb ب\u200cا ..."]),
        ("\x1b[2J>[MASK]", ["... [\\u001b[2J] ..."]),
    ],
)
def test_marks(pieces, expected, by_hand):
    row = row_of(by_hand, pieces)
    _, *lines = show(row, by_hand, ids=False, colours=False).split("\n")
    assert lines == [f"  {line}" for line in expected]
    coloured = show(row, by_hand, ids=False, colours=True)
    assert COLOUR.sub("", coloured) == show(row, by_hand, ids=False, colours=False)
    assert "\x1b[2J" not in coloured


def test_ids_stand_under_the_text_with_the_same_marks(by_hand):
    row = row_of(by_hand, "[CLS] A Haus>[MASK] ##tür=  A>Haus [SEP] [CLS] A")
    _, *lines = show(row, by_hand, ids=True, colours=False).split("\n")
    assert lines == [
        "  [CLS] A [Haus][tür=] [A>Haus] [SEP]",
        "  2 5 [6] [7=] [5>6] 3",
        "  [CLS] A ...",
        "  2 5 ...",
    ]


def test_heading_counts_and_the_record_agrees(by_hand):
    row = row_of(by_hand, "A [UNK] Haus>[MASK] A=A A>Haus A>[MASK] [SEP] [CLS] A", padding=7)
    heading = show(row, by_hand, ids=False, colours=False).split("\n")[0]
    assert heading == (
        "deu_Latn:3  9 tokens, 7 padding, 1 unknown; 2 lines; 4 hidden: 2 mask, 1 random, 1 kept"
    )
    found = record(row, by_hand)
    assert json.loads(json.dumps(found)) == found
    assert (found["language"], found["row"], found["place"]) == ("deu_Latn", 3, None)
    assert (found["padding"], found["unknown"]) == (7, 1)
    assert found["lines"] == ["A[UNK] Haus A A A", "A"]
    assert found["tokens"] == [5, 1, 6, 5, 5, 5, 3, 2, 5]
    assert found["inputs"] == [5, 1, 4, 5, 6, 4, 3, 2, 5]
    assert [tuple(hidden.values()) for hidden in found["hidden"]] == [
        (2, "mask", "Haus", "[MASK]"),
        (3, "kept", "A", "A"),
        (4, "random", "A", "Haus"),
        (5, "mask", "A", "[MASK]"),
    ]


def test_the_legend_is_one_line_and_names_the_pieces_of_the_tokenizer(by_hand, store_path):
    for tokenizer, named in ((by_hand, SPECIAL[1:]), (Store(store_path).tokenizer(), ["<mask>"])):
        text = legend(tokenizer, colours=False)
        assert "\n" not in text and all(piece in text for piece in named)
        assert COLOUR.sub("", legend(tokenizer, colours=True)) == text


def test_the_command_shows_a_step_and_a_language(store_path, capsys, monkeypatch):
    inspect = ["inspect", "--data", str(store_path), "--gin.train.global_batch_size=16"]
    assert main(inspect) == 0
    first = capsys.readouterr().out
    assert first.startswith("step 1: 16 rows of ") and first.count("batch[") == 4
    assert "\x1b" not in first and first.rstrip("\n").split("\n")[-1].startswith("hidden, ")
    assert main([*inspect, "--step", "1"]) == 0 and capsys.readouterr().out == first
    assert main([*inspect, "--step", "1", "--gin.train.seed=1"]) == 0
    assert capsys.readouterr().out != first

    language = [*inspect, "--language", "qab_Cyrl", "--rows", "2"]
    assert main(language) == 0
    shown = capsys.readouterr().out
    assert "train rows of qab_Cyrl" in shown and "qab_Cyrl:1  32 tokens" in shown
    assert "hidden:" not in shown and "batch[" not in shown
    assert main([*language, "--json"]) == 0
    assert [found["row"] for found in json.loads(capsys.readouterr().out)] == [0, 1]

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(inspect) == 0
    coloured = capsys.readouterr().out
    assert "\x1b" in coloured and COLOUR.sub("", coloured) == first
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(inspect) == 0 and capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--language", "qab_Cyrll"], "has no 'qab_Cyrll'; did you mean qab_Cyrl"),
        (["--language", "deu"], "has no 'deu'"),
        (["--step", "0"], "--step 0: expected 1 to 150000"),
        (["--step", "11", "--gin.train.num_steps=10"], "--step 11: expected 1 to 10"),
        (["--rows", "0"], "--rows 0: expected a whole number above 0"),
        (["--split", "validation"], "needs --language"),
        (["--split", "validation", "--language", "qab_Cyrl", "--step", "1"], "no --step"),
        (["--gin.mixture.temperatur=1"], "did you mean temperature"),
    ],
)
def test_bad_calls_are_refused_in_one_line(arguments, expected, store_path, capsys):
    assert main(["inspect", "--data", str(store_path), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and expected in printed.err


def test_a_language_that_was_skipped_says_why(store_path):
    store = Store(store_path)
    store.manifest.skipped["deu_Latn"] = "12 training tokens do not fill a row of 32"
    with pytest.raises(UserError, match="no deu_Latn: 12 training tokens do not fill"):
        inspect_rows(store, Configs(), "deu_Latn", None, "train", 1)
