"""Fine-tuning against a plain loop in PyTorch, and what must hold for any task.

The number of devices is fixed when jax starts, so this file is also the program that fine-tunes in
a process of its own: ``test_finetune.py MODEL OUTPUT``.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.evaluation.config import Protocol
from langsamp_jax.evaluation.datasets.classification import read_sentence_task
from langsamp_jax.evaluation.finetune import (
    NO_LABEL,
    FineTuner,
    LabelledExamples,
    batches,
    finetune,
)
from langsamp_jax.evaluation.metrics import macro_f1
from langsamp_jax.evaluation.model import LoadedModel, load_model
from langsamp_jax.evaluation.transfer import label_sentences
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import load_tokenizer

STEPS = 50
LENGTH = 24
NOWHERE = (0, 0)  # rows of tables that the encoder does not look at
SENTENCES = Protocol(True, 2e-4, 8, 16, 2, LENGTH, 1, math.inf)
WORDS = Protocol(False, 2e-4, 17, 32, 1, LENGTH, 1, 1.0)


def sentences(count: int, seed: int) -> LabelledExamples:
    """17 to 24 random ids, the first of which is 100 + the label of the sentence, one of 7."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, count)
    lengths = rng.integers(14, LENGTH - 2, count)
    tokens = [
        np.array([0, 100 + label, *rng.integers(4, 600, length), 2], np.int32)
        for label, length in zip(labels, lengths, strict=True)
    ]
    return LabelledExamples(tokens, [np.array([label]) for label in labels])


def words(count: int, seed: int) -> LabelledExamples:
    """The same, but about every second id begins a word, whose label is its remainder by 5."""
    rng, tokens = np.random.default_rng(seed), sentences(count, seed).tokens
    labels = [np.where((rng.random(len(row)) < 0.5) & (row > 3), row % 5, -1) for row in tokens]
    return LabelledExamples(tokens, labels)


def some(examples: LabelledExamples, chosen: np.ndarray) -> LabelledExamples:
    return LabelledExamples(
        [examples.tokens[i] for i in chosen], [examples.labels[i] for i in chosen]
    )


def updates(tuner: FineTuner, examples: LabelledExamples, seed: int, number: int) -> tuple:
    """The state after some updates, and the loss of each."""
    state, losses = tuner.start(seed), []
    epochs = (batches(len(examples.tokens), tuner.protocol, seed, i) for i in itertools.count(1))
    for chosen in itertools.islice(itertools.chain.from_iterable(epochs), number):
        state, loss = tuner.update(state, some(examples, chosen), NOWHERE, seed)
        losses.append(loss)
    return state, np.array(losses, np.float64)


def main(model: Path, output: Path) -> None:
    """Some updates of batches that few numbers of devices divide, and predictions after them."""
    trained, examples = load_model(model), words(18, 0)
    protocol = dataclasses.replace(WORDS, learning_rate=2e-5, batch_size=6)
    tuner = FineTuner(trained, protocol, 5, 18)
    state, losses = updates(tuner, examples, 0, 9)
    predicted = [row.tolist() for row in tuner.predict(state.params, examples, NOWHERE)]
    found = {"devices": trained.mesh.size, "losses": losses.tolist(), "predicted": predicted}
    output.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(make_checkpoint, tokenizer_file, tmp_path_factory) -> Path:
    """A random XLM-R for 24 tokens, without dropout."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(tokenizer_file)
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    sizes["max_position_embeddings"] = LENGTH + 2
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_checkpoint(folder, "xlm-roberta", tokenizer.vocab_size, **sizes, **rates)
    write_tokenizer(tokenizer, folder, LENGTH)
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> LoadedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def with_dropout(folder, tmp_path_factory) -> Path:
    """The same weights, with XLM-R's rates of dropout."""
    other = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (other / "config.json").write_text(json.dumps(config))
    return other


# Against PyTorch


class Reference:
    """``transformers``' model for a task, from the same folder and with the head of ours.

    Args:
      one_vector: not to train its token-type vector. There is only one, which it adds to every
        position and trains beside the positions; ours is a part of them from the start.
    """

    def __init__(self, tuner: FineTuner, head, num_steps: int, one_vector: bool):
        self.torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        self.torch.set_num_threads(1)
        protocol = tuner.protocol
        kind = "Sequence" if protocol.pooled else "Token"
        auto = getattr(transformers, f"XLMRobertaFor{kind}Classification")
        num_labels = head["output"]["bias"].size
        self.model = auto.from_pretrained(tuner.trained.path, num_labels=num_labels).train()
        classifier = self.model.classifier
        layers = {"output": classifier}
        if protocol.pooled:
            layers = {"dense": classifier.dense, "output": classifier.out_proj}
        assert layers.keys() == head.keys()
        with self.torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(self.torch.tensor(np.asarray(head[name]["kernel"]).T))
                layer.bias.copy_(self.torch.tensor(np.asarray(head[name]["bias"])))
        embeddings = self.model.roberta.embeddings
        embeddings.token_type_embeddings.weight.requires_grad_(not one_vector)
        self.clip_norm = protocol.clip_norm
        self.optimizer = self.torch.optim.AdamW(
            self.model.parameters(), lr=protocol.learning_rate, eps=1e-8, weight_decay=0.0
        )
        self.scheduler = transformers.get_linear_schedule_with_warmup(self.optimizer, 0, num_steps)

    def output(self, examples: LabelledExamples):
        pad = functools.partial(self.torch.nn.utils.rnn.pad_sequence, batch_first=True)
        tokens, labels = (
            [self.torch.tensor(row).long() for row in rows]
            for rows in (examples.tokens, examples.labels)
        )
        labels = pad(labels, padding_value=NO_LABEL)
        mask = pad([self.torch.ones_like(row) for row in tokens])
        labels[labels == NO_LABEL] = -100
        return self.model(pad(tokens, padding_value=1), mask, labels=labels)

    def backward(self, examples: LabelledExamples, share: float = 1.0) -> float:
        loss = self.output(examples).loss
        (loss * share).backward()
        return loss.item()

    def step(self) -> None:
        if math.isfinite(self.clip_norm):
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.scheduler.step()

    def predict(self, examples: LabelledExamples) -> tuple[list[list[int]], np.ndarray]:
        """The labels that are likelier than they are on average, and the logits' average."""
        with self.torch.no_grad():
            logits = self.output(examples).logits.numpy()
        logits = logits.reshape(len(examples.tokens), -1, logits.shape[-1])
        wanted = [
            row[: len(labels)][labels != NO_LABEL]
            for row, labels in zip(logits, examples.labels, strict=True)
        ]
        mean = np.concatenate(wanted).mean(axis=0)
        return [(row - mean).argmax(axis=-1).tolist() for row in wanted], mean


def whole(reference: Reference, examples: LabelledExamples, chosen: np.ndarray) -> float:
    reference.optimizer.zero_grad()
    loss = reference.backward(some(examples, chosen))
    reference.step()
    return loss


def accumulated(reference: Reference, examples: LabelledExamples, chosen: np.ndarray) -> float:
    """What the published loop means to do: the gradients of parts of 8, added up."""
    reference.optimizer.zero_grad()
    parts = [chosen[i : i + 8] for i in range(0, len(chosen), 8)]
    shares = [len(part) / len(chosen) for part in parts]
    losses = [
        reference.backward(some(examples, *pair[:1]), pair[1])
        for pair in zip(parts, shares, strict=True)
    ]
    reference.step()
    return float(np.dot(losses, shares))


def forgetful(reference: Reference, examples: LabelledExamples, chosen: np.ndarray) -> float:
    """What it does: the gradients are zeroed before every part, halved, and used after the last."""
    for i in range(0, len(chosen), 8):
        reference.optimizer.zero_grad()
        loss = reference.backward(some(examples, chosen[i : i + 8]), 0.5)
    reference.step()
    return loss


def reference_losses(reference: Reference, loop, examples: LabelledExamples, epochs) -> list[float]:
    order = itertools.islice(itertools.chain.from_iterable(epochs), STEPS)
    return [loop(reference, examples, chosen) for chosen in order]


def assert_same(ours: np.ndarray, theirs: list[float], most: float = 1e-3) -> None:
    assert len(ours) == len(theirs) == STEPS
    assert np.mean(theirs[-10:]) < np.mean(theirs[:10]) - 0.03, "nothing was learnt"
    difference = np.abs(ours - theirs).max()
    print(f"largest difference of {STEPS} losses: {difference:.1e}")
    assert difference < most


def assert_same_predictions(
    tuner, params, reference: Reference, examples: LabelledExamples
) -> None:
    """With a bias that gives all labels a chance: a fresh head says the same of everything."""
    theirs, mean = reference.predict(examples)
    output = {**params["head"]["output"], "bias": params["head"]["output"]["bias"] - mean}
    params = {**params, "head": {**params["head"], "output": output}}
    ours = [row.tolist() for row in tuner.predict(params, examples, NOWHERE)]
    assert len(set(itertools.chain.from_iterable(theirs))) > 3
    assert ours == theirs


def compare(trained: LoadedModel, protocol: Protocol, num_labels: int, train, dev, loops) -> None:
    """Trains both, ours once, PyTorch's with each of some loops that ought to be the same."""
    count, seed = len(train.tokens), 3
    tuner = FineTuner(trained, protocol, num_labels, count)
    start = tuner.start(seed).params
    state, ours = updates(tuner, train, seed, STEPS)
    unbroken = dataclasses.replace(protocol, published_defect=False)
    epochs = [batches(count, unbroken, seed, i + 1) for i in range(protocol.num_epochs)]
    num_steps = sum(map(len, epochs))
    if protocol.published_defect:
        num_steps = math.ceil(count / 8) * protocol.num_epochs
    for loop in loops:
        for one_vector, most in ((False, 1e-3), (True, 1e-5)):
            reference = Reference(tuner, start["head"], num_steps, one_vector)
            assert_same_predictions(tuner, start, reference, dev)
            assert_same(ours, reference_losses(reference, loop, train, epochs), most)
        assert_same_predictions(tuner, state.params, reference, dev)


@pytest.mark.slow
def test_sentences_are_learnt_as_in_pytorch(trained):
    """104 examples: the last batch of an epoch is half a one."""
    compare(trained, SENTENCES, 7, sentences(104, 1), sentences(40, 2), [whole, accumulated])


@pytest.mark.slow
def test_the_published_defect_is_that_of_a_loop_that_forgets(trained):
    protocol = dataclasses.replace(SENTENCES, published_defect=True)
    compare(trained, protocol, 7, sentences(104, 1), sentences(40, 2), [forgetful])


@pytest.mark.slow
def test_words_are_learnt_as_in_pytorch(trained):
    compare(trained, WORDS, 5, words(96, 1), words(40, 2), [whole])


@pytest.mark.slow
def test_sib200_is_learnt_as_in_pytorch(folder, shared_data, tmp_path):
    """Real sentences, in pieces of their own, of which the model takes the first 24."""
    (tmp_path / "text").mkdir()
    data = shared_data / "flores_sib200"
    (tmp_path / "text" / "eng_Latn.txt").symlink_to(data / "text" / "eng_Latn.txt")
    shutil.copy(data / "labels.tsv", tmp_path)
    tokenizer = train_tokenizer(tmp_path / "text", 600, tmp_path / "tokenizer.model")
    shutil.copytree(folder, tmp_path / "model")
    write_tokenizer(tokenizer, tmp_path / "model", LENGTH)
    trained = load_model(tmp_path / "model")

    sib = read_sentence_task(tmp_path, "sib200")
    assert (len(sib.train.texts), len(sib.dev.texts)) == (701, 99)
    train, dev = (label_sentences(tokenizer, part, LENGTH) for part in (sib.train, sib.dev))
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(trained.path)
    expected = theirs(sib.train.texts, truncation=True).input_ids
    assert [row.tolist() for row in train.tokens] == expected
    assert train.truncated > 500
    compare(trained, SENTENCES, 7, some(train, range(104)), dev, [whole])


# What is learnt, and what is kept of it


@pytest.fixture(scope="module")
def tuner(with_dropout) -> FineTuner:
    """With weights small enough that it learns soon."""
    trained = load_model(with_dropout)
    assert (trained.config.hidden_dropout, trained.config.attention_dropout) == (0.1, 0.1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (1.0 if path[-1].key == "scale" else 0.5), trained.params
    )
    protocol = dataclasses.replace(SENTENCES, learning_rate=2e-3, num_epochs=7)
    return FineTuner(dataclasses.replace(trained, params=params), protocol, 7, 256)


@pytest.fixture(scope="module")
def train() -> LabelledExamples:
    return sentences(256, 5)


def fitted(tuner: FineTuner, train: LabelledExamples, seed: int, score=None) -> tuple:
    dev = sentences(64, 6)
    true = np.concatenate(dev.labels)
    said = []
    score = score or (lambda predicted: macro_f1(true, np.concatenate(predicted)))
    return *finetune(tuner, train, dev, NOWHERE, seed, score, said.append), said


@pytest.fixture(scope="module")
def first(tuner, train) -> tuple:
    return fitted(tuner, train, 0)


@pytest.mark.slow
def test_what_can_be_told_apart_is_learnt(first, tuner):
    params, best, said = first
    assert best["dev"] > 0.95
    test = sentences(64, 7)
    predicted = np.concatenate(tuner.predict(params, test, NOWHERE))
    assert macro_f1(np.concatenate(test.labels), predicted) > 0.9
    assert len(said) == 7
    line = f"seed 0, epoch {best['epoch']}: loss {best['loss']:.4f}, dev {best['dev']:.4f}"
    assert said[best["epoch"] - 1] == line


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(first, tuner, train):
    params, best, said = fitted(tuner, train, 0)
    assert (best, said) == first[1:]
    jax.tree.map(np.testing.assert_array_equal, params, first[0])


@pytest.mark.slow
def test_seeds_differ_in_head_order_and_dropout(tuner, train):
    zero, one = tuner.start(0).params, tuner.start(1).params
    jax.tree.map(np.testing.assert_array_equal, zero["model"], one["model"])
    for name in ("dense", "output"):
        assert (zero["head"][name]["kernel"] != one["head"][name]["kernel"]).all()
    part = some(train, range(16))
    losses = [float(tuner.update(tuner.start(0), part, NOWHERE, seed)[1]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]  # of the same head


@pytest.mark.slow
def test_the_first_of_the_best_epochs_is_kept(tuner, train):
    scores = iter([0.1, 0.7, 0.3, 0.7, 0.2, 0.6, 0.0])
    params, best, _ = fitted(tuner, train, 2, lambda predicted: next(scores))
    assert (best["epoch"], best["dev"]) == (2, 0.7)
    state, losses = updates(tuner, train, 2, 32)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert best["loss"] == pytest.approx(losses[16:].mean(), rel=1e-6)


# Devices


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_devices(with_dropout, tmp_path):
    root, outputs = Path(__file__).parents[2], [tmp_path / "one.json", tmp_path / "four.json"]
    flags = "--xla_force_host_platform_device_count=4"
    path = os.pathsep.join([str(root), *sys.path])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
    command = [sys.executable, __file__, str(with_dropout), str(outputs[1])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, cwd=root, **pipes) as process:
        main(with_dropout, outputs[0])
        text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    one, four = (json.loads(output.read_text()) for output in outputs)
    assert (one["devices"], four["devices"]) == (1, 4)
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=0, atol=1e-5)
    assert four["predicted"] == one["predicted"]
    assert len(set(itertools.chain.from_iterable(one["predicted"]))) > 1


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
