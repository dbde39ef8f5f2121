"""Weights & Biases gets what metrics.jsonl has, in one record for all sessions of a run."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.training.loop import train


def logged(file: Path) -> list[dict[str, float]]:
    """The values of every call in the file of an offline record.

    It is a log of LevelDB: behind 7 bytes, blocks of 32 KiB with parts of records, each behind its
    checksum, length and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, calls = file.read_bytes(), 7, b"", []
    while position < len(data):
        left = -position % 32_768 or 32_768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            items, parts = Record.FromString(parts).history.item, b""
            values = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            if values:
                calls.append({k: json.loads(v) for k, v in values.items() if k[0] != "_"})
    return calls


@pytest.mark.slow
def test_sessions_of_a_run_have_one_record(store_path, tmp_path):
    pytest.importorskip("wandb")
    command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store_path]
    command += ["--output", tmp_path / "run", "--gin_file", "models/tiny.gin"]
    settings = {"num_steps": 4, "global_batch_size": 8, "log_every": 1, "checkpoint_every": 2}
    settings |= {"wandb_project": "languages", "eval_rows": 1}
    command += [f"--gin.train.{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    calls = []
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, capture_output=True)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        calls.append([json.loads(line) for line in lines])
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    records = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 2 and len({file.name for file in records}) == 1
    assert logged(records[0]) == calls[0]
    assert logged(records[1]) == [call for call in calls[1] if call["step"] > 2]


def test_the_missing_package_is_named_before_anything_is_done(
    store_path, tmp_path, tiny_configs, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'langsamp-jax\[wandb\]'"):
        train(Store(store_path), tmp_path / "run", tiny_configs(wandb_project="languages"))
    assert not (tmp_path / "run").exists()


def test_nobody_is_logged_in(store_path, tmp_path, tiny_configs, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        train(Store(store_path), tmp_path / "run", tiny_configs(wandb_project="languages"))
