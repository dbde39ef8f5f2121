"""The same numbers as ``transformers``' XLM-R, weight by weight."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.objectives.masked_lm import MaskedExamples, MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.text.tokenizer import Vocabulary

pytestmark = pytest.mark.usefixtures("optimized")

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = Vocabulary(300, 0, 1, 2, 3, 299)
VOCAB, HIDDEN, LAYERS, HEADS, MLP, LENGTH = 300, 32, 3, 4, 64, 20
LANGUAGES, SCRIPTS = 5, 3
LENGTHS = np.array([20, 20, 13, 2])


def make(placement: str) -> LangSamp:
    config = ModelConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_length=LENGTH,
        placement=placement,
    )
    return LangSamp(config, VOCAB, LANGUAGES, SCRIPTS)


def make_reference(**sizes):
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=LENGTH + 2,
        **{"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, **sizes},
    )
    return transformers.XLMRobertaForMaskedLM(config).eval()


@pytest.fixture(scope="module")
def reference():
    """Weights large enough that every one of them shows, no bias 0 and no scale 1."""
    model = make_reference()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "orm.weight" in name:
                parameter.add_(1)
    return model


def converted(reference) -> dict:
    """The weights in our tree; the padding of the vocabulary is filled with large numbers."""
    state = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
    state = {k.removeprefix("roberta."): v for k, v in state.items()}
    pad = -VOCAB % 128

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def layer(i):
        base = f"encoder.layer.{i}"
        heads = {name: dense(f"{base}.attention.self.{name}") for name in ("query", "key", "value")}
        return {
            "attention": {**heads, "output": dense(f"{base}.attention.output.dense")},
            "attention_layer_norm": norm(f"{base}.attention.output.LayerNorm"),
            "intermediate": dense(f"{base}.intermediate.dense"),
            "output": dense(f"{base}.output.dense"),
            "output_layer_norm": norm(f"{base}.output.LayerNorm"),
        }

    words, positions = (
        state[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position")
    )
    return {
        "word_embeddings": np.pad(words, ((0, pad), (0, 0)), constant_values=50.0),
        "decoder_bias": np.pad(state["lm_head.bias"], (0, pad), constant_values=50.0),
        "encoder": {
            # There is one token type, so its vector is part of every position.
            "position_embeddings": positions[2:]
            + state["embeddings.token_type_embeddings.weight"][0],
            "layer_norm": norm("embeddings.LayerNorm"),
            "layers": jax.tree.map(lambda *parts: np.stack(parts), *map(layer, range(LAYERS))),
        },
        "head": {"dense": dense("lm_head.dense"), "layer_norm": norm("lm_head.layer_norm")},
    }


@pytest.fixture(scope="module")
def params(reference):
    rng = np.random.default_rng(3)
    tables = {
        "language": rng.normal(0, 0.5, (LANGUAGES, HIDDEN)).astype("f"),
        "script": rng.normal(0, 0.5, (SCRIPTS, HIDDEN)).astype("f"),
    }
    return {**converted(reference), "conditioning": tables}


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(1)
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    tokens = np.where(mask, rng.integers(2, VOCAB, mask.shape), 1)  # 1 is <pad>
    tokens[:, 0] = 0
    ids = np.array([0, 4, 2, 2], np.int32), np.array([2, 0, 1, 2], np.int32)
    return Batch(tokens.astype(np.int32), mask, TableIds(*ids))


def run_reference(reference, batch: Batch, **inputs):
    if not inputs:
        inputs = {"input_ids": torch.tensor(batch.tokens, dtype=torch.long)}
    mask = torch.tensor(batch.attention_mask, dtype=torch.long)
    return reference(**inputs, attention_mask=mask, output_hidden_states=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, params, batch):
    return model.apply({"params": params}, *batch, method=method)


def assert_close(ours, theirs, mask, atol=1e-4):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[..., mask, :], theirs[..., mask, :], atol=atol)


def test_the_conversion_fills_every_parameter(params):
    ours = nn.unbox(jax.eval_shape(lambda: init_params(make("output"), jax.random.key(0))))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, ours)


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "mlp"), [(768, 12, 12, 3072), (1024, 24, 16, 4096)]
)
def test_xlmr_has_as_many_parameters(hidden, layers, heads, mlp):
    vocab, length = 250_002, 512
    with torch.device("meta"):
        config = transformers.XLMRobertaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=mlp,
            max_position_embeddings=length + 2,
            type_vocab_size=1,
        )
        theirs = sum(p.numel() for p in transformers.XLMRobertaForMaskedLM(config).parameters())
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    model = LangSamp(ModelConfig(**sizes, intermediate_size=mlp, placement="none"), vocab, 0, 0)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # They have two unused positions and a token-type vector; we fill up the vocabulary.
    assert ours - (-vocab % 128) * (hidden + 1) == theirs - 3 * hidden


def test_hidden_states_of_every_layer(reference, params, batch):
    ours = apply(make("none"), LangSamp.hidden_states, params, batch)
    theirs = torch.stack(run_reference(reference, batch).hidden_states)
    assert ours.shape[0] == LAYERS + 1
    assert_close(ours, theirs, batch.attention_mask)
    last = apply(make("none"), LangSamp.encode, params, batch)
    assert_close(last, theirs[-1], batch.attention_mask)


def test_logits(reference, params, batch):
    ours = apply(make("none"), LangSamp.__call__, params, batch)
    assert_close(ours, run_reference(reference, batch).logits, batch.attention_mask)


def vectors(params, batch: Batch):
    tables = params["conditioning"]
    both = tables["language"][batch.ids.language] + tables["script"][batch.ids.script]
    return torch.tensor(both)[:, None]


def test_output_placement_adds_the_vectors_before_the_head(reference, params, batch):
    hidden = run_reference(reference, batch).hidden_states[-1]
    theirs = reference.lm_head(hidden + vectors(params, batch))
    assert_close(
        apply(make("output"), LangSamp.__call__, params, batch), theirs, batch.attention_mask
    )


def test_input_placement_adds_the_vectors_to_the_word_embeddings(reference, params, batch):
    words = reference.roberta.embeddings.word_embeddings(torch.tensor(batch.tokens).long())
    theirs = run_reference(reference, batch, inputs_embeds=words + vectors(params, batch)).logits
    assert_close(
        apply(make("input"), LangSamp.__call__, params, batch), theirs, batch.attention_mask
    )


@pytest.fixture(scope="module")
def masked(batch) -> MaskedExamples:
    """Three targets a row, as many as it has room for."""
    positions = np.array([[1, 7, 19], [2, 3, 18], [12, 4, 6], [1, 0, 2]], np.int32)
    weights = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    targets = np.random.default_rng(5).integers(4, VOCAB - 1, positions.shape).astype(np.int32)
    return MaskedExamples(*batch, positions, targets, weights)


def test_loss_and_gradients(reference, params, batch, masked):
    labels = np.full(batch.tokens.shape, -100)
    for row in range(len(labels)):
        chosen = masked.weights[row]
        labels[row, masked.positions[row][chosen]] = masked.targets[row][chosen]
    logits = run_reference(reference, batch).logits
    theirs = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), torch.tensor(labels).reshape(-1), reduction="none"
    ).reshape(labels.shape)
    reference.zero_grad()
    theirs.sum().backward()

    @jax.jit
    def value_and_grad(params):
        def total(params):
            few = ObjectiveConfig(logits_at_once=1000)
            return MaskedLm(make("none"), Vocabulary(VOCAB, 0, 1, 2, 3, VOCAB - 1), few).loss(
                params, masked, None
            )

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, (loss, count)), gradient = value_and_grad(params)
    np.testing.assert_array_equal(count, masked.weights.sum(axis=1))
    mean = theirs.detach().numpy().sum() / masked.weights.sum()
    assert float(loss.sum() / count.sum()) == pytest.approx(mean, abs=1e-5)
    np.testing.assert_allclose(loss, theirs.detach().numpy().sum(axis=1), rtol=1e-5)

    roberta = reference.roberta
    ours_query = gradient["encoder"]["layers"]["attention"]["query"]["kernel"][0]
    their_query = roberta.encoder.layer[0].attention.self.query.weight.grad.T
    words = roberta.embeddings.word_embeddings.weight.grad
    for ours, other in (
        (gradient["word_embeddings"][:VOCAB], words),
        (gradient["decoder_bias"][:VOCAB], reference.lm_head.bias.grad),
        (gradient["encoder"]["layer_norm"]["scale"], roberta.embeddings.LayerNorm.weight.grad),
        (ours_query, their_query),
    ):
        scale = float(other.abs().max())
        assert scale > 1e-3
        np.testing.assert_allclose(np.asarray(ours) / scale, other.numpy() / scale, atol=1e-5)
