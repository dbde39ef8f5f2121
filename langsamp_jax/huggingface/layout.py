"""Which Hugging Face tensor is which parameter, and which config field is which setting.

One table serves both directions. Kernels are transposed, layers are stacked; the rest differs in
name only, but for two things. The token-type vector of the first segment is the same for every
token: it is added to the positions on import, and zeros are written on export. XLM-R's positions
start behind the padding id; the rows before are never used, left out and written as zeros.
"""

from importlib import resources
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.tokenizer import Vocabulary

# The published LangSAMP checkpoints keep the two tables beside the encoder's embeddings.
LANGUAGE_TABLE = "embeddings.lang_type_embeddings.weight"
SCRIPT_TABLE = "embeddings.script_type_embeddings.weight"

MODEL_CLASS = {
    "xlm-roberta": "XLMRoberta",
    "xlm-roberta-xl": "XLMRobertaXL",
    "bert": "Bert",
}
FULL = "langsamp-"  # in front of the model type of a full LangSAMP model
# PyTorch needs code for the tables: this file travels in the folder of a full model.
MODELING_FILE = resources.files("langsamp_jax") / "huggingface" / "modeling_langsamp.py"

# Fields of config.json that ModelConfig has under the same name.
_SAME_NAME = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
)
DECIDED_FIELDS = ("architecture", *_SAME_NAME, "max_length")  # of ModelConfig, by a config.json
_DROPOUT = {
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}


def prefix(architecture: str) -> str:
    """Returns what the names of an encoder's tensors begin with in a masked-LM checkpoint; those of
    a plain encoder begin with nothing."""
    return "bert." if architecture == "bert" else "roberta."


def tied_names(architecture: str) -> dict[str, str]:
    """Returns the decoder's name of each tensor that it shares -> the name in ``tensor_names``.

    A file may hold both or either one: ``save_model`` of safetensors keeps the first by alphabet.
    """
    head = "cls.predictions" if architecture == "bert" else "lm_head"
    words = prefix(architecture) + "embeddings.word_embeddings.weight"
    return {f"{head}.decoder.weight": words, f"{head}.decoder.bias": f"{head}.bias"}


def tensor_names(model: ModelConfig) -> dict[str, str]:
    """Returns parameter path -> tensor name in a masked-LM checkpoint, for all of ``model``.

    A name with ``{layer}`` stands for one tensor a layer.
    """
    pre_norm, bert = model.norm_first, model.architecture == "bert"
    base, head = prefix(model.architecture), "cls.predictions" if bert else "lm_head"
    block = base + "encoder.layer.{layer}."
    dense = {
        "encoder/layers/attention/query": block + "attention.self.query",
        "encoder/layers/attention/key": block + "attention.self.key",
        "encoder/layers/attention/value": block + "attention.self.value",
        "encoder/layers/attention/output": block + "attention.output.dense",
        "encoder/layers/intermediate": block + "intermediate.dense",
        "encoder/layers/output": block + "output.dense",
        "head/dense": f"{head}.transform.dense" if bert else f"{head}.dense",
    }
    norm = {
        "encoder/layer_norm": base + ("encoder" if pre_norm else "embeddings") + ".LayerNorm",
        "encoder/layers/attention_layer_norm": block
        + ("attention.self_attn_layer_norm" if pre_norm else "attention.output.LayerNorm"),
        "encoder/layers/output_layer_norm": block + ("" if pre_norm else "output.") + "LayerNorm",
        "head/layer_norm": f"{head}.transform.LayerNorm" if bert else f"{head}.layer_norm",
    }
    names = {
        "word_embeddings": base + "embeddings.word_embeddings.weight",
        "encoder/position_embeddings": base + "embeddings.position_embeddings.weight",
        "decoder_bias": f"{head}.bias",
    }
    for path, name in dense.items():
        names |= {f"{path}/kernel": f"{name}.weight", f"{path}/bias": f"{name}.bias"}
    for path, name in norm.items():
        names |= {f"{path}/scale": f"{name}.weight", f"{path}/bias": f"{name}.bias"}
    if model.placement != "none" and model.use_language:
        names["conditioning/language"] = base + LANGUAGE_TABLE
    if model.placement != "none" and model.use_script:
        names["conditioning/script"] = base + SCRIPT_TABLE
    return names


def named_tables(model: ModelConfig, inventory: Inventory) -> Inventory:
    """Returns the names of the rows of the tables that a model has; none for one that it lacks."""
    has = model.placement != "none"
    return Inventory(
        inventory.languages if has and model.use_language else (),
        inventory.scripts if has and model.use_script else (),
        inventory.language_scripts,
    )


def token_types(model: ModelConfig) -> str:
    """Returns the name of the token-type table."""
    return prefix(model.architecture) + "embeddings.token_type_embeddings.weight"


def first_position(architecture: str, pad_id: int) -> int:
    """Returns the row of the position table that the first token of a text takes."""
    return 0 if architecture == "bert" else pad_id + 1


def model_fields(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Returns the fields of ``ModelConfig`` that a Hugging Face ``config.json`` decides.

    Raises:
      UserError: it asks for another kind of model, or for something that is not supported.
    """
    model_type = str(config.get("model_type"))
    architecture = model_type.removeprefix(FULL)
    if architecture not in MODEL_CLASS:
        supported = ", ".join(MODEL_CLASS)
        raise UserError(
            f"{source}: model_type {model_type!r} is not supported; there are {supported}"
        )
    if quantization := config.get("quantization_config"):
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UserError(
            f"{source}: its weights are quantised ({kind}), which is not supported; name the model "
            "that they were made from"
        )
    required = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    for field, value in required.items():
        if (actual := config.get(field, value)) != value:
            raise UserError(f"{source}: {field} = {actual!r} is not supported, only {value!r}")
    try:
        fields = {name: config[name] for name in _SAME_NAME}
        sizes = [config["vocab_size"], config["max_position_embeddings"]]
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]} is missing") from None
    pad_id = config.get("pad_token_id", 1)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or not isinstance(pad_id, int):
        raise UserError(
            f"{source}: vocab_size, max_position_embeddings, pad_token_id = {sizes[0]!r}, "
            f"{sizes[1]!r}, {pad_id!r}: expected whole numbers"
        )
    fields["max_length"] = sizes[1] - first_position(architecture, pad_id)
    try:
        ModelConfig(architecture=architecture, **fields)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return {"architecture": architecture, **fields}


def dropout_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the dropout rates of a ``config.json``: how it was trained, not what it is."""
    return {ours: config[theirs] for ours, theirs in _DROPOUT.items() if theirs in config}


def stock_config(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the ``config.json`` of a plain masked LM with the shapes of ``model``."""
    first = first_position(model.architecture, vocabulary.pad_id)
    return {
        "architectures": [MODEL_CLASS[model.architecture] + "ForMaskedLM"],
        "model_type": model.architecture,
        **{name: getattr(model, name) for name in _SAME_NAME},
        "max_position_embeddings": model.max_length + first,
        "type_vocab_size": 2 if model.architecture == "bert" else 1,
        "vocab_size": vocabulary.size,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        **{theirs: getattr(model, ours) for ours, theirs in _DROPOUT.items()},
        "initializer_range": model.initializer_range,
        "bos_token_id": vocabulary.bos_id,
        "pad_token_id": vocabulary.pad_id,
        "eos_token_id": vocabulary.eos_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def full_model_config(
    stock_config: dict[str, Any], inventory: Inventory, placement: str
) -> dict[str, Any]:
    """Returns the ``config.json`` of a full model: encoder, head and the two tables.

    Args:
      stock_config: that of the same encoder without tables.
      inventory: the names of the tables' rows; empty for a table that the model does without.
      placement: ``output`` or ``input``.

    Raises:
      UserError: the model has no tables.
    """
    if placement == "none" or not (inventory.languages or inventory.scripts):
        raise UserError("the model has no language or script vectors; leave --full out")
    family = MODEL_CLASS[stock_config["model_type"]]
    module = MODELING_FILE.name.removesuffix(".py")
    classes = {
        "AutoConfig": f"LangSamp{family}Config",
        "AutoModel": f"LangSamp{family}Model",
        "AutoModelForMaskedLM": f"LangSamp{family}ForMaskedLM",
    }
    return {
        **stock_config,
        "architectures": [classes["AutoModelForMaskedLM"]],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        "model_type": FULL + stock_config["model_type"],
        "languages": list(inventory.languages),
        "scripts": list(inventory.scripts),
        "placement": placement,
    }
