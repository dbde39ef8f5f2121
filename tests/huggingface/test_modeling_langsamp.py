"""The full model in PyTorch: the stock model, with two vectors in the right place."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.layout import MODELING_FILE, full_model_config
from langsamp_jax.languages.inventory import Inventory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

VOCAB, HIDDEN = 60, 16
INVENTORY = Inventory(("deu", "eng", "zho", "swa"), ("Arab", "Hans", "Latn"))
PAIRS = ["zho_Hans", "deu_Latn", "swa_Arab"]
ROWS = torch.tensor([2, 0, 3]), torch.tensor([1, 2, 0])
KINDS = {
    "xlm-roberta": transformers.XLMRobertaForMaskedLM,
    "xlm-roberta-xl": transformers.XLMRobertaXLForMaskedLM,
    "bert": transformers.BertForMaskedLM,
}


class Case(NamedTuple):
    """A stock model with random weights, two random tables, and the folder made of them."""

    stock: transformers.PreTrainedModel
    language: torch.Tensor
    script: torch.Tensor
    folder: Path

    def vectors(self) -> torch.Tensor:
        language, script = ROWS
        return (self.language[language] + self.script[script])[:, None]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        head = self.stock.cls if hasattr(self.stock, "cls") else self.stock.lm_head
        return head(hidden)


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory):
    """Where transformers copies the code of a folder before it runs it: not the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", list(sys.path))  # transformers adds the cache to it
        yield


def make_case(kind: str, folder: Path, placement: str = "output", inventory=INVENTORY) -> Case:
    bert = kind == "bert"
    stock = KINDS[kind](
        KINDS[kind].config_class(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=24,
            type_vocab_size=2 if bert else 1,
            pad_token_id=0 if bert else 1,
            layer_norm_eps=1e-5,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "orm.weight" in name:
                parameter.add_(1)
    tables = [torch.randn(len(INVENTORY.languages), HIDDEN, generator=generator)]
    tables += [torch.randn(len(INVENTORY.scripts), HIDDEN, generator=generator)]

    folder.mkdir()
    config = full_model_config(json.loads(stock.config.to_json_string()), inventory, placement)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / MODELING_FILE.name).write_bytes(MODELING_FILE.read_bytes())
    tensors = {k: v for k, v in stock.state_dict().items() if ".decoder." not in k}
    if inventory.languages:
        tensors[f"{stock.base_model_prefix}.embeddings.lang_type_embeddings.weight"] = tables[0]
    if inventory.scripts:
        tensors[f"{stock.base_model_prefix}.embeddings.script_type_embeddings.weight"] = tables[1]
    safetensors_torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return Case(stock, *tables, folder)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("full") / "model")


@pytest.fixture(scope="module", params=KINDS)
def input_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("full") / "model", "input")


def load(folder: Path, auto=transformers.AutoModelForMaskedLM):
    """Loads ``folder`` and checks that each tensor has found its place, and each place a tensor."""
    model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def make_inputs(case: Case) -> dict[str, torch.Tensor]:
    """3 sentences of 11, 7 and 3 tokens."""
    mask = (torch.arange(11) < torch.tensor([[11], [7], [3]])).long()
    ids = torch.randint(4, VOCAB, mask.shape, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids * mask + case.stock.config.pad_token_id * (1 - mask),
        "attention_mask": mask,
    }


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_logits_are_the_stock_head_of_states_plus_vectors(case):
    model, inputs = load(case.folder), make_inputs(case)
    hidden = case.stock.base_model(**inputs).last_hidden_state
    expected = case.head(hidden + case.vectors())
    output = model(**inputs, language=PAIRS)
    close(output.logits, expected)
    assert (expected - case.head(hidden)).abs().max() > 0.1

    labels = inputs["input_ids"].masked_fill(torch.rand(inputs["input_ids"].shape) < 0.5, -100)
    labels[0, 0] = 5
    chosen = labels >= 0
    log_probability = expected.log_softmax(-1)[chosen].gather(1, labels[chosen][:, None])
    with_labels = model(**inputs, language=PAIRS, labels=labels)
    close(with_labels.loss, -log_probability.mean())
    as_tuple = model(**inputs, language=PAIRS, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    close(as_tuple[0], with_labels.loss)
    close(as_tuple[1], expected)


def test_without_a_language_it_is_the_stock_model(case):
    model, inputs = load(case.folder), make_inputs(case)
    output = model(**inputs, output_hidden_states=True)
    expected = case.stock(**inputs, output_hidden_states=True)
    close(output.logits, expected.logits)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        close(ours, theirs)


def test_auto_model_is_the_encoder(case):
    encoder, inputs = load(case.folder, transformers.AutoModel), make_inputs(case)
    expected = case.stock.base_model(**inputs).last_hidden_state
    close(encoder(**inputs).last_hidden_state, expected)
    close(encoder(**inputs, language=PAIRS).last_hidden_state, expected)
    assert encoder.pooler is None


def test_names_rows_lists_and_tensors_agree(case):
    model, inputs = load(case.folder), make_inputs(case)
    languages, scripts = zip(*(pair.split("_") for pair in PAIRS), strict=True)
    expected = model(**inputs, language=PAIRS).logits
    for language, script in [
        (list(languages), list(scripts)),
        (languages, ROWS[1].tolist()),
        (ROWS[0].tolist(), ROWS[1]),
        (ROWS[0][:, None], ROWS[1].numpy()),
    ]:
        torch.testing.assert_close(
            model(**inputs, language=language, script=script).logits, expected, atol=0, rtol=0
        )
    one = model(**inputs, language=["deu_Latn"] * 3).logits
    for given in [{"language": "deu_Latn"}, {"language": "deu", "script": "Latn"},
                  {"language": 0, "script": 2}]:  # fmt: skip
        torch.testing.assert_close(model(**inputs, **given).logits, one, atol=0, rtol=0)
    close(one[1], expected[1])
    assert (one[0] - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"language": "dea_Latn"}, "no language 'dea'; did you mean deu"),
        ({"language": "deu", "script": "Latin"}, "no script 'Latin'; did you mean Latn"),
        ({"language": "deu_Latn", "script": "Latn"}, "no language 'deu_Latn'; did you mean deu"),
        ({"language": [0, 4, 1], "script": 0}, "no language row 4; it has 4 rows"),
        ({"language": 0, "script": -1}, "no script row -1"),
        ({"language": ["deu_Latn", "eng_Latn"]}, "2 language rows for a batch of 3"),
        ({"language": torch.zeros(3, 11, dtype=torch.long), "script": 0}, "33 language rows"),
        ({"language": "deu"}, "needs a script"),
        ({"script": "Latn"}, "needs a language"),
    ],
)
def test_what_the_tables_do_not_have_is_refused(case, given, message):
    model, inputs = load(case.folder), make_inputs(case)
    with pytest.raises(ValueError, match=message):
        model(**inputs, **given)


def test_padding_changes_nothing(case, input_case):
    for folder in (case.folder, input_case.folder):
        model, inputs = load(folder), make_inputs(case)
        together = model(**inputs, language=PAIRS).logits
        for row, pair in enumerate(PAIRS):
            length = int(inputs["attention_mask"][row].sum())
            alone = model(input_ids=inputs["input_ids"][row : row + 1, :length], language=pair)
            close(alone.logits[0], together[row, :length])


def test_gradients_reach_the_rows_in_use_and_no_other(case):
    model, inputs = load(case.folder), make_inputs(case)
    model(**inputs, language=PAIRS, labels=inputs["input_ids"]).loss.backward()
    embeddings = model.base_model.embeddings
    for table, rows in [
        (embeddings.lang_type_embeddings, ROWS[0]),
        (embeddings.script_type_embeddings, ROWS[1]),
    ]:
        used = table.weight.grad.abs().amax(1) > 1e-6
        assert used.nonzero().flatten().tolist() == sorted(rows.tolist())


def test_decoder_is_tied_to_the_encoder_in_use(case):
    config = transformers.AutoConfig.from_pretrained(case.folder, trust_remote_code=True)
    fresh = transformers.AutoModelForMaskedLM.from_config(config, trust_remote_code=True)
    for model in (load(case.folder), fresh):
        words = model.base_model.embeddings.word_embeddings.weight
        assert model.get_output_embeddings().weight is words
    spread = fresh.base_model.embeddings.lang_type_embeddings.weight.std()
    assert 0.5 < spread / config.initializer_range < 2


@pytest.mark.parametrize("auto", [transformers.AutoModelForMaskedLM, transformers.AutoModel])
def test_saved_and_loaded_again(case, tmp_path, auto):
    model, inputs = load(case.folder, auto), make_inputs(case)
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    original = json.loads((case.folder / "config.json").read_text())
    for field in ("model_type", "auto_map", "languages", "scripts", "placement", "vocab_size"):
        assert written[field] == original[field]
    code = (tmp_path / "saved" / MODELING_FILE.name).read_bytes()
    assert code == MODELING_FILE.read_bytes()
    again = load(tmp_path / "saved", auto)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)
    close(again(**inputs, language=PAIRS)[0], model(**inputs, language=PAIRS)[0])


def test_vectors_at_the_input(input_case):
    model, inputs = load(input_case.folder), make_inputs(input_case)
    words = input_case.stock.get_input_embeddings()(inputs["input_ids"])
    embedded = {"inputs_embeds": words + input_case.vectors()}
    expected = input_case.stock(**embedded, attention_mask=inputs["attention_mask"]).logits
    ours = model(**inputs, language=PAIRS).logits
    mask = inputs["attention_mask"].bool()
    close(ours[mask], expected[mask])

    encoder = load(input_case.folder, transformers.AutoModel)
    close(input_case.head(encoder(**inputs, language=PAIRS).last_hidden_state), ours)
    for full_or_encoder in (model, encoder):
        with pytest.raises(ValueError, match="needs a language"):
            full_or_encoder(**inputs)


def test_positions_at_the_input_are_those_of_the_stock_model(input_case, tmp_path):
    """Padding on the left included, where they are not simply 0, 1, 2 …"""
    model, inputs = load(input_case.folder), make_inputs(input_case)
    flipped = {name: tensor.flip(1) for name, tensor in inputs.items()}
    with torch.no_grad():
        for name in ("lang", "script"):
            getattr(model.base_model.embeddings, f"{name}_type_embeddings").weight.zero_()
    mask = flipped["attention_mask"].bool()
    expected = input_case.stock(**flipped).logits
    close(model(**flipped, language=PAIRS).logits[mask], expected[mask])


@pytest.mark.parametrize("kind", ["language", "script"])
def test_one_table_alone(tmp_path, kind):
    others = {"language": "scripts", "script": "languages"}[kind]
    inventory = dataclasses.replace(INVENTORY, **{others: ()})
    case = make_case("xlm-roberta", tmp_path / "model", inventory=inventory)
    model, inputs = load(case.folder), make_inputs(case)
    table, rows = (case.language, ROWS[0]) if kind == "language" else (case.script, ROWS[1])
    hidden = case.stock.base_model(**inputs).last_hidden_state
    expected = case.head(hidden + table[rows][:, None])
    close(model(**inputs, language=PAIRS).logits, expected)
    close(model(**inputs, **{kind: rows}).logits, expected)


def test_no_tables_is_no_full_model():
    for inventory, placement in [(INVENTORY, "none"), (Inventory((), ()), "output")]:
        with pytest.raises(UserError, match="no language or script vectors"):
            full_model_config({"model_type": "bert"}, inventory, placement)
