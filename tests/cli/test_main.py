"""The command as a user meets it: what it says, what it exits with, what it loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.errors import out_of_memory
from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.run import open_run

FORBIDDEN = (
    *("tensorflow", "tensorflow_text", "seqio", "apache_beam", "torch", "transformers"),
    "wandb",
)

TASKS = (
    *("mlm", "retrieval-tatoeba", "retrieval-bible", "taxi1500", "sib200", "ner", "pos"),
    *("pseudo-perplexity", "neutrality", "neurons", "concepts", "language-probe", "ablation"),
    *("geometry", "donors"),
)

TINY = [
    "--gin.model.hidden_size=32",
    "--gin.model.num_hidden_layers=2",
    "--gin.model.num_attention_heads=2",
    "--gin.model.intermediate_size=64",
    "--gin.model.max_length=64",
    "--gin.train.global_batch_size=8",
    "--gin.train.num_steps=12",
    "--gin.train.log_every=2",
    "--gin.train.eval_every=6",
    "--gin.train.checkpoint_every=6",
]


@pytest.fixture(scope="module")
def run(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--data", str(store_path), "--output", str(run), *TINY]) == 0
    return run


@pytest.mark.parametrize(
    "statement",
    [
        "import langsamp_jax",
        "import langsamp_jax.cli.main, langsamp_jax.training.loop, langsamp_jax.analysis.donors",
        "import langsamp_jax.cli.demo",
    ],
)
def test_imports_load_neither_tensorflow_nor_torch(statement):
    code = f"import sys; {statement}; print([m for m in {FORBIDDEN} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "evaluate", "report"])
def test_commands_load_neither_tensorflow_nor_torch(verb, store_path, run, tmp_path):
    calls = {
        "train": ["train", "--data", store_path, "--output", tmp_path / "run", *TINY],
        "evaluate": ["evaluate", "mlm", "--model", run, "--data", store_path]
        + ["--output", tmp_path / "mlm.json"],
        "report": ["report", "--run", run],
    }
    code = (
        "import sys; from langsamp_jax.cli.main import main; status = main(sys.argv[1:]); "
        f"print([m for m in {FORBIDDEN} if m in sys.modules]); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *map(str, calls[verb])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_needs_no_jax():
    code = (
        "import sys; from langsamp_jax.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    "verb",
    ["demo", "synthesize", "tokenizer train", "tokenizer extend", "prepare", "mixture"]
    + ["inspect", "settings", "train", "plan", "export", "languages add"]
    + [f"evaluate {task}" for task in TASKS]
    + ["compare", "report"],
)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert f"example: langsamp {verb}" in capsys.readouterr().out


def test_run_folder_stands_alone(run, store_path, tmp_path, capsys):
    expected = {"run.json", "config.gin", "tokenizer.model", "inventory.json", "metrics.jsonl"}
    assert expected <= {file.name for file in run.iterdir()}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in steps if "train/loss" in line]
    evaluated = [line for line in steps if "eval/loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert {"tokens_per_second", "learning_rate", "train/grad_norm"} <= logged[-1].keys()
    assert any(key.startswith("eval/loss/qaa_") for key in evaluated[-1])
    assert "train.num_steps = 12" in (run / "config.gin").read_text()

    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", run, moved], check=True)
    output = tmp_path / "mlm.json"
    call = ["evaluate", "mlm", "--model", moved, "--data", store_path, "--output", output]
    assert main(list(map(str, call))) == 0
    result = json.loads(output.read_text())
    assert result["task"] == "mlm" and result["step"] in (6, 12)
    assert "unigram loss" in capsys.readouterr().out


def test_tensorboard_has_the_scalars_of_the_log(run):
    from tensorboard.compat.proto.event_pb2 import Event

    found = {}
    for file in (run / "tensorboard").iterdir():
        data, position = file.read_bytes(), 0
        while position < len(data):  # a record: length, its crc, the event, its crc
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 12 + length + 4
            found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name, value in line.items():
            if name != "step":
                assert found[line["step"], name] == pytest.approx(value, rel=1e-6)


def test_mixture_and_dry_run_show_the_rates_and_write_nothing(store_path, tmp_path, capsys):
    call = ["mixture", "--data", str(store_path), "--json", "--gin.mixture.temperature=1"]
    assert main(call) == 0
    records = json.loads(capsys.readouterr().out)
    rows = sum(record["rows"] for record in records)
    for record in records:
        assert record["rate"] == pytest.approx(record["rows"] / rows, abs=1e-8)
    output = tmp_path / "run"
    call = ["train", "--data", str(store_path), "--output", str(output), "--dry_run", *TINY]
    assert main(call) == 0
    text = capsys.readouterr().out
    assert "model.hidden_size = 32" in text and "parameters:" in text and "memory:" in text
    assert not output.exists()


def test_bad_calls_are_one_line(store_path, run, corpus, tokenizer_file, tmp_path, command_refused):
    out = tmp_path / "out"
    train = ["train", "--data", store_path, "--output", out]
    prepare = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file]
    assert "VERB" in command_refused("pretrain")
    assert "--output" in command_refused(*prepare)
    assert "--verbose" in command_refused(*train, "--verbose")
    assert "did you mean train" in command_refused(*train, "--gin.trian.num_steps=5")
    assert "num_steps" in command_refused(*train, "--gin.train.num_step=5")
    assert "whole number" in command_refused(*train, "--gin.train.num_steps=many")
    assert "nope.gin" in command_refused(*train, "--gin_file", "nope.gin")
    assert "manifest.json" in command_refused("mixture", "--data", tmp_path)
    assert "model.max_length" in command_refused(*train, "--gin.model.max_length=16")
    assert "no such" in command_refused("synthesize", "--output", "/proc/no/corpus").lower()
    assert not out.exists()


def test_names_that_are_not_utf8_are_one_line(corpus, tokenizer_file, tmp_path, command_refused):
    """TensorStore cannot write them; inside of a language-script's folder they are read."""
    wrong = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    words = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file, "--output", wrong]
    assert "not UTF-8; rename it" in command_refused(*words)
    assert not os.path.exists(wrong + ".partial")
    (tmp_path / "corpus" / "qaa_Latn").mkdir(parents=True)
    text = (corpus / "qaa_Latn.txt").read_bytes()
    (tmp_path / "corpus" / "qaa_Latn" / os.fsdecode(b"caf\xe9.txt")).write_bytes(text)
    words[2], words[6] = tmp_path / "corpus", tmp_path / "store"
    assert main([*map(str, words), "--sequence_length", "32", "--workers", "1"]) == 0


def test_names_that_the_terminal_cannot_encode_are_printed(corpus, tmp_path):
    """With escapes, where a line of output would have ended in a traceback."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    output = tmp_path / "größe.model"
    command = [sys.executable, "-m", "langsamp_jax", "tokenizer", "train", "--corpus", corpus]
    command += ["--vocab_size", "300", "--sentences", "500", "--output", output]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and output.exists(), done.stderr
    assert "gr\\xf6\\xdfe.model" in done.stdout


def test_a_gin_file_that_includes_itself_or_a_moved_module_is_one_line(
    store_path, tmp_path, write_files, command_refused
):
    write_files(tmp_path, {"a.gin": "include 'a.gin'", "old.gin": "import langsamp_jax.train"})
    call = ["mixture", "--data", store_path, "--gin_file"]
    assert "a.gin includes itself: " in command_refused(*call, tmp_path / "a.gin")
    line = command_refused(*call, tmp_path / "old.gin")
    assert "old.gin: there is no module langsamp_jax.train any more" in line
    assert line.endswith("it is now langsamp_jax.training.loop\n")


def test_output_that_holds_something_else_is_left_alone(
    store_path, corpus, tmp_path, command_refused
):
    kept = tmp_path / "kept" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    call = ["train", "--data", store_path, "--output", kept.parent, *TINY]
    assert "holds something else" in command_refused(*call)
    assert "holds something else" in command_refused("synthesize", "--output", kept.parent)
    assert [file.name for file in kept.parent.iterdir()] == ["thesis.txt"]


def test_run_of_another_model_vocabulary_or_store_is_refused(
    run, store_path, corpus, tmp_path, command_refused
):
    call = ["train", "--data", store_path, "--output", run, *TINY]
    before = (run / "metrics.jsonl").read_bytes()
    line = command_refused(*call, "--gin.model.hidden_size=64")
    assert "model.hidden_size = 32, now 64" in line
    main(["tokenizer", "train", "--corpus", str(corpus), "--vocab_size", "500"]
         + ["--output", str(tmp_path / "other.model")])  # fmt: skip
    main(["prepare", "--corpus", str(corpus), "--tokenizer", str(tmp_path / "other.model")]
         + ["--output", str(tmp_path / "other"), "--sequence_length", "32"])  # fmt: skip
    assert "another tokenizer" in command_refused(
        "train", "--data", tmp_path / "other", "--output", run, *TINY
    )
    assert "another tokenizer" in command_refused(
        "evaluate", "mlm", "--model", run, "--data", tmp_path / "other",
        "--output", tmp_path / "x.json",
    )  # fmt: skip
    assert (run / "metrics.jsonl").read_bytes() == before


def test_run_on_another_store_of_the_same_tokenizer_is_refused(
    run, corpus, tokenizer_file, tmp_path, command_refused
):
    main(["prepare", "--corpus", str(corpus), "--tokenizer", str(tokenizer_file)]
         + ["--output", str(tmp_path / "other"), "--sequence_length", "32"])  # fmt: skip
    call = ["train", "--data", tmp_path / "other", "--output", run, *TINY]
    assert "another store" in command_refused(*call)


def test_reading_a_run_leaves_a_save_in_progress_alone(run):
    saving = run / "checkpoints" / "99.orbax-checkpoint-tmp"
    saving.mkdir()
    restore_params(
        open_run(run),
    )
    assert saving.is_dir()
    saving.rmdir()


def test_batch_that_the_devices_do_not_divide(store_path, tmp_path):
    command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store_path]
    command += ["--output", tmp_path / "run", *TINY, "--gin.train.global_batch_size=12"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "multiple of 8" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_out_of_memory_is_one_line_of_advice(store_path, tmp_path):
    """A real one: no machine has the memory for these parameters."""
    settings = ["--gin.model.hidden_size=1048576", "--gin.model.intermediate_size=4194304"]
    command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store_path]
    command += ["--output", tmp_path / "run", *TINY, *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in ("bytes", "accumulation_steps", "model.remat", "mesh.fsdp", "langsamp plan"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("Out of memory while trying to allocate 12.35GiB.\nBufferAssignment", "allocate 12.35GiB"),
        ("Out of memory allocating 17592186044416 bytes.", "allocating 17592186044416 bytes"),
        (
            "Ran out of memory in memory space hbm. Used 78.02G of 15.75G hbm. Exceeded hbm "
            "capacity by 62.27G.\n\nTotal hbm usage >= 78.5G:\n    reserved",
            "Used 78.02G of 15.75G",
        ),
        ("something else", None),
    ],
)
def test_out_of_memory_says_how_much(text, amount):
    line = out_of_memory(RuntimeError(f"RESOURCE_EXHAUSTED: {text}"))
    assert f"memory ({amount}): raise" in line if amount else "memory: raise" in line
    assert "\n" not in line
    assert out_of_memory(RuntimeError("INVALID_ARGUMENT: something else")) is None


def test_damaged_store_names_the_file(store_path, tmp_path, command_refused):
    store = tmp_path / "store"
    subprocess.run(["cp", "-r", store_path, store], check=True)
    file = next((store / "train").glob("*/c/0/0"))
    data = file.read_bytes()
    call = ["train", "--data", store, "--output", tmp_path / "run", *TINY]
    file.write_bytes(data[:-7])
    assert str(file) in command_refused(*call)
    assert not (tmp_path / "run").exists()
