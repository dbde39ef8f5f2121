"""A Hugging Face model folder that training can start from: what it holds, strictly checked.

XLM-R (base, large, XL, XXL) and multilingual BERT as masked LMs or plain encoders, the published
LangSAMP checkpoints, and what ``langsamp export`` writes. Only headers are read here; the weights
are read by ``loading.py``.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from langsamp_jax.config import configurable
from langsamp_jax.errors import UserError
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.folder import why_no_model
from langsamp_jax.huggingface.weights import Weights
from langsamp_jax.io.storage import location
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.config import ModelConfig

# What a checkpoint may hold besides: the pooler and BERT's next-sentence head are no part of
# masked-language modelling; position ids are a constant. So may the decoder, which is tied.
_NOT_USED = ("pooler.", "cls.seq_relationship.")
_CONSTANTS = ("embeddings.position_ids",)


@configurable("init")
class InitConfig:
    """How a training that starts from a checkpoint begins.

    Attributes:
      new_pieces: first rows of pieces that the checkpoint lacks: the mean of the old pieces that
        spell the new one, or normal, N(0, 0.02), as in the published code.
    """

    new_pieces: Literal["mean", "normal"] = "mean"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An opened folder.

    Attributes:
      fields: what it decides of ``ModelConfig``.
      dropout: the rates of its own training, which another may change.
      vocab_size: rows of its embeddings.
      inventory: the names of its language and script rows; None where it has no tables.
      has_head: False for a plain encoder.
      weights: the tensors, by the names of a masked-LM checkpoint.
    """

    path: Path
    fields: dict[str, Any]
    dropout: dict[str, Any]
    vocab_size: int
    pad_id: int
    inventory: Inventory | None
    has_head: bool
    weights: Weights

    @property
    def not_used(self) -> list[str]:
        """Returns the tensors that have no place in our model."""
        return sorted(n for n in self.weights.shapes if any(part in n for part in _NOT_USED))

    @property
    def has_token_types(self) -> bool:
        """Returns False for the published LangSAMP checkpoints, which lack the constant vector."""
        return self._token_types in self.weights.shapes

    @property
    def _token_types(self) -> str:
        return layout.token_types(ModelConfig(**self.fields))

    def check(self, model: ModelConfig) -> None:
        """Raises UserError unless the tensors are exactly those of ``model``.

        What may be absent is the head of a plain encoder and, all together, the two tables; what
        may be there besides, the pooler and BERT's next-sentence head.
        """
        for field, value in self.fields.items():
            if (asked := getattr(model, field)) != value:
                raise UserError(f"model.{field} = {asked!r}, but {self.path} has {value!r}")
        expected, actual = self._shapes(model), self.weights.shapes
        tied = layout.tied_names(model.architecture)
        optional = (self._token_types, *_CONSTANTS, *_NOT_USED, *tied)
        missing = [n for n in expected if n not in actual]
        extra = [n for n in actual if n not in expected and not any(part in n for part in optional)]
        wrong = [
            f"{n} {list(actual[n])} instead of {list(expected[n])}"
            for n in expected
            if n in actual and actual[n] != expected[n]
        ]
        if self.has_token_types:
            shape = actual[self._token_types]
            if shape[1:] != (model.hidden_size,):
                wrong.append(f"{self._token_types} {list(shape)}")
        elif not self.inventory:
            missing.append(self._token_types)
        kinds = {"missing": missing, "unexpected": extra, "of another shape": wrong}
        faults = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
        if faults:
            raise UserError(f"{self.path} does not hold this model; {'; '.join(faults)}")

    def _shapes(self, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Returns the tensors that must be there, and their shapes."""
        hidden, mlp = model.hidden_size, model.intermediate_size
        first = layout.first_position(model.architecture, self.pad_id)
        special = {
            "word_embeddings": (self.vocab_size, hidden),
            "decoder_bias": (self.vocab_size,),
            "encoder/position_embeddings": (first + model.max_length, hidden),
            "encoder/layers/intermediate/kernel": (mlp, hidden),
            "encoder/layers/intermediate/bias": (mlp,),
            "encoder/layers/output/kernel": (hidden, mlp),
        }
        if self.inventory:
            special["conditioning/language"] = (len(self.inventory.languages), hidden)
            special["conditioning/script"] = (len(self.inventory.scripts), hidden)
        absent = [] if self.has_head else ["head/", "decoder_bias"]
        absent += [] if self.inventory else ["conditioning/"]
        shapes = {}
        for path, name in layout.tensor_names(model).items():
            if path.startswith(tuple(absent)):
                continue
            usual = (hidden, hidden) if path.endswith("kernel") else (hidden,)
            shape = special.get(path, usual)
            for layer in range(model.num_hidden_layers if "{layer}" in name else 1):
                shapes[name.format(layer=layer)] = shape
        return shapes


def open_pretrained(path: Path) -> Pretrained:
    """Reads the config, the headers of the weights and the inventory.

    Weights in an object store are copied to the temporary folder; see ``Weights``.

    Raises:
      UserError: the folder is no model of a supported kind, or is damaged.
    """
    path = location(path)
    file = path / "config.json"
    config, fields = read_config(path)
    weights = Weights(path)
    base = layout.prefix(fields["architecture"])
    plain = not any(name.startswith(base) for name in weights.shapes)
    weights.rename(lambda name: _modern(base + name if plain else name))
    tied = layout.tied_names(fields["architecture"])
    weights.rename(lambda name: name if tied.get(name, name) in weights.shapes else tied[name])
    encoder_class = layout.MODEL_CLASS[fields["architecture"]] + "Model"
    has_head = config.get("architectures") != [encoder_class] or any(
        name.startswith(("lm_head.", "cls.predictions.")) for name in weights.shapes
    )
    table_fields, inventory = _tables(config, weights, base, file)
    return Pretrained(
        path,
        {**fields, **table_fields},
        layout.dropout_fields(config),
        config["vocab_size"],
        config.get("pad_token_id", 1),
        inventory,
        has_head,
        weights,
    )


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads ``config.json`` of a folder, and the fields of ``ModelConfig`` that it decides.

    Raises:
      UserError: there is none, it is damaged, or its model is not supported.
    """
    if reason := why_no_model(location(path)):
        raise UserError(reason)
    file = location(path) / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is no Hugging Face model (it has no config.json)") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged (it is no JSON object)")
    return config, layout.model_fields(config, str(file))


def _tables(
    config: dict[str, Any], weights: Weights, base: str, file: Path
) -> tuple[dict[str, Any], Inventory | None]:
    """Returns the settings that the two tables imply, and the names of their rows."""
    language, script = base + layout.LANGUAGE_TABLE, base + layout.SCRIPT_TABLE
    has_language, has_script = language in weights.shapes, script in weights.shapes
    if not (has_language or has_script):
        return {}, None
    settings = {
        "placement": config.get("placement", "output"),
        "use_language": has_language,
        "use_script": has_script,
    }
    if "languages" in config and "scripts" in config:
        for field in ("languages", "scripts"):
            names = config[field]
            if not isinstance(names, list):
                raise UserError(f"{file}: {field} is no list of names")
            for name in names:
                if not isinstance(name, str) or names.count(name) > 1:
                    raise UserError(f"{file}: {field} has {name!r}: expected different names")
        rows = tuple(config["languages"]), tuple(config["scripts"])
        return settings, Inventory(*rows, _language_scripts(file.with_name("inventory.json")))
    inventory = Inventory.published()
    for name, codes in ((language, inventory.languages), (script, inventory.scripts)):
        if name in weights.shapes and weights.shapes[name][0] != len(codes):
            raise UserError(
                f"{file}: it does not say which languages and scripts the rows of {name} are, and "
                f"there are {weights.shapes[name][0]}, not the published {len(codes)}"
            )
    return settings, inventory


def _language_scripts(file: Path) -> tuple[str, ...]:
    """Reads which text the model has seen, where ``inventory.json`` is there to say it."""
    if not file.exists():
        return ()
    try:
        return Inventory.from_json(file.read_bytes()).language_scripts
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; export the run again, or remove it") from None


def _modern(name: str) -> str:
    """Renames LayerNorm's gamma and beta, as checkpoints converted from TensorFlow call them."""
    if name.endswith(".gamma"):
        return name.removesuffix("gamma") + "weight"
    return name.removesuffix("beta") + "bias" if name.endswith(".beta") else name


def _listed(names: list[str], most: int = 12) -> str:
    """Lists names in order, the first ``most`` of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + rest
