"""Edits: changes of a trained model that are changes of its parameters, params -> params.

To hold neuron j at c is to zero row j of the kernel behind it and to add c times that row to the
bias, and so for a head and for the output of a whole sub-layer. So an edited model is a model: it
runs on any mesh and is exported as any other. Layers are counted from 0, as in
``encoder.layer.0``; edits compose, and number the layers of the model before any edit.
"""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp

GRAMMAR = (
    "attention@3=mean, ffn@0-2=zero, head@3.1=zero, norm@all, block@5, block@5=repeat, "
    "block@5=swap, language=mean, script=zero, neurons=FILE.npz or neurons=RESULT.json:deu_Latn"
)
_FORM = re.compile(r"(?P<part>\w+)(@(?P<layers>\d+(-\d+)?|all)(\.(?P<head>\d+))?)?(=(?P<how>.+))?")
_HOW = {  # of each part what can be done with it; the first is what is done unless said
    "attention": ("zero", "mean", "rotated"),
    "ffn": ("zero", "mean", "rotated"),
    "head": ("zero", "mean"),
    "norm": ("plain",),
    "block": ("drop", "repeat", "swap"),
    "language": ("zero", "mean"),
    "script": ("zero", "mean"),
}
_SITES = {"attention": "attention", "ffn": "feed_forward", "head": "heads"}  # whose mean is put in
_KERNELS = {"attention": ("attention", "output"), "ffn": ("output",)}  # what gives the output


# Of np.load: no file, no such array, no archive but one array, no archive, half of one, nothing.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, EOFError)


class Edit(NamedTuple):
    """One edit.

    Attributes:
      part: attention, ffn, head, norm, block; language or script, a table; or neurons.
      how: what is done with it: a constant output of ``zero``, or of its ``mean`` over a text, or
        one that is ``rotated``, which leaves its norm; ``plain``, a LayerNorm without its scale and
        bias; ``drop``, ``repeat`` or ``swap`` (with the next one) of a block; of a table, a vector
        for all of ``zero`` or of their ``mean``; of neurons, where they stand, see
        ``read_neurons``.
      first, last: the layers, both included; None: all.
      head: of a layer.
    """

    part: str
    how: str
    first: int | None = None
    last: int | None = None
    head: int | None = None

    def layers(self, config: ModelConfig) -> range:
        """Returns the layers that it is about; raises UserError where there is none of a number."""
        last = config.num_hidden_layers - 1
        if self.first is None:
            return range(last + 1)
        if not self.first <= self.last <= last:
            raise UserError(f"{self}: the layers are 0 to {last}")
        return range(self.first, self.last + 1)

    @property
    def site(self) -> str | None:
        """Returns the site whose mean is needed, see ``models/taps.py``; None: of none."""
        return _SITES.get(self.part) if self.how == "mean" else None

    def __str__(self) -> str:
        layers = "" if self.part in ("neurons", "language", "script") else "@all"
        if self.first is not None:
            layers = f"@{self.first}" + (f"-{self.last}" if self.last != self.first else "")
        head = "" if self.head is None else f".{self.head}"
        return f"{self.part}{layers}{head}={self.how}"


def parse_edit(text: str) -> Edit:
    """Reads an edit, such as ``attention@3=mean``; raises UserError where it is none."""
    form = _FORM.fullmatch(text)
    part = form["part"] if form else None
    if part == "neurons" and form["how"] and not form["layers"]:
        return Edit(part, form["how"])
    known = part in _HOW and (part in ("language", "script")) == (form["layers"] is None)
    if not known or (part == "head") != (form["head"] is not None):
        raise UserError(f"edit {text}: expected a form like {GRAMMAR}")
    how = form["how"] or _HOW[part][0]
    if how not in _HOW[part]:
        raise UserError(f"edit {text}: {part} can be {' or '.join(_HOW[part])}, not {how}")
    head = int(form["head"]) if form["head"] else None
    if form["layers"] in (None, "all"):
        return Edit(part, how, head=head)
    first, _, last = form["layers"].partition("-")
    return Edit(part, how, int(first), int(last or first), head)


def apply_edits(
    edits: Sequence[Edit], model: LangSamp, params: Any, means: Mapping[str, jax.Array]
) -> tuple[LangSamp, Any]:
    """Returns the edited model, and its parameters.

    Args:
      means: of each site that an edit names (``Edit.site``) the mean of its values over a text,
        [layers, width].

    Raises:
      UserError: an edit is of a layer, a head, a table or neurons that the model lacks.
    """
    config, order = model.config, list(range(model.config.num_hidden_layers))
    whole = params
    for edit in edits:
        mean = means[edit.site] if edit.site else None
        if edit.part == "neurons":
            params = clamp(params, *read_neurons(edit.how, config, whole))
        elif edit.part in ("language", "script"):
            params = same_vector(params, edit.part, edit.how)
        elif edit.part == "block":
            order = _reordered(order, edit, config)
        else:
            for layer in edit.layers(config):
                params = _sub_layer(params, edit, layer, config, mean)
    return with_blocks(model, params, order)


def clamp(params: Any, chosen: jax.Array, value: jax.Array | float) -> Any:
    """Holds neurons at a value, whatever the input.

    Args:
      chosen: bool [layers, neurons].
      value: float [layers, neurons], or one for all.
    """
    output = params["encoder"]["layers"]["output"]
    held = jnp.where(chosen, value, 0)
    added = jnp.einsum("ln,lnh->lh", held, output["kernel"], precision="highest")
    kernel = jnp.where(chosen[..., None], 0, output["kernel"])
    return _with_layers(params, ("output",), {"kernel": kernel, "bias": output["bias"] + added})


def detectors(params: Any, layer: int, kernel: jax.Array, bias: jax.Array) -> Any:
    """Makes the first neurons of a layer fire at directions of what its feed-forward is given, and
    have no effect.

    Args:
      kernel: [hidden_size, neurons], of the first so many.
      bias: [neurons].
    """
    neurons, leaf = slice(len(bias)), _layers(params, ("intermediate",))
    chosen = np.zeros(leaf["bias"].shape, bool)
    chosen[layer, neurons] = True
    detecting = {
        "kernel": _put(leaf["kernel"], (layer, slice(None), neurons), kernel),
        "bias": _put(leaf["bias"], (layer, neurons), bias),
    }
    return clamp(_with_layers(params, ("intermediate",), detecting), chosen, 0.0)


def constant(params: Any, part: str, layer: int, value: jax.Array | float) -> Any:
    """Makes ``attention`` or ``ffn`` of a layer give ``value`` [hidden_size] for every input."""
    leaf = _layers(params, _KERNELS[part])
    kernel, bias = _put(leaf["kernel"], layer, 0), _put(leaf["bias"], layer, value)
    return _with_layers(params, _KERNELS[part], {"kernel": kernel, "bias": bias})


def constant_prediction(params: Any, logits: jax.Array) -> Any:
    """Makes the language-modelling head give ``logits`` [vocab_size] for every input."""
    norm = jax.tree.map(jnp.zeros_like, params["head"]["layer_norm"])
    bias = _put(params["decoder_bias"], slice(len(logits)), logits)
    return {**params, "head": {**params["head"], "layer_norm": norm}, "decoder_bias": bias}


def rotated(params: Any, part: str, layer: int) -> Any:
    """Turns what ``attention`` or ``ffn`` of a layer gives by one random rotation."""
    leaf = _layers(params, _KERNELS[part])
    size = leaf["bias"].shape[-1]
    turn, _ = np.linalg.qr(np.random.default_rng(layer).normal(size=(size, size)))
    turn = jnp.asarray(turn, jnp.float32)
    turned = {
        name: _put(leaf[name], layer, jnp.matmul(leaf[name][layer], turn, precision="highest"))
        for name in ("kernel", "bias")
    }
    return _with_layers(params, _KERNELS[part], turned)


def constant_head(params: Any, layer: int, head: int, value: jax.Array) -> Any:
    """Makes the mixed values of one head be ``value`` [head_size] for every input."""
    leaf = _layers(params, _KERNELS["attention"])
    rows = slice(head * len(value), (head + 1) * len(value))
    added = jnp.dot(value, leaf["kernel"][layer, rows], precision="highest")
    kernel = _put(leaf["kernel"], (layer, rows), 0)
    bias = _put(leaf["bias"], layer, leaf["bias"][layer] + added)
    return _with_layers(params, _KERNELS["attention"], {"kernel": kernel, "bias": bias})


def plain_norms(params: Any, layer: int) -> Any:
    """Takes the scale and the bias of both LayerNorms of a layer away."""
    for name in ("attention_layer_norm", "output_layer_norm"):
        leaf = _layers(params, (name,))
        plain = {"scale": _put(leaf["scale"], layer, 1), "bias": _put(leaf["bias"], layer, 0)}
        params = _with_layers(params, (name,), plain)
    return params


def same_vector(params: Any, table: str, how: str) -> Any:
    """Gives all languages, or all scripts, one vector: ``zero``, or the ``mean`` of the table."""
    tables = params.get("conditioning", {})
    if table not in tables:
        raise UserError(f"{table}={how}: the model has no {table} table")
    rows = tables[table]
    vector = rows.mean(axis=0) if how == "mean" else 0
    return {**params, "conditioning": {**tables, table: jnp.full_like(rows, vector)}}


def with_blocks(model: LangSamp, params: Any, order: Sequence[int]) -> tuple[LangSamp, Any]:
    """Returns a model of these blocks of another one, in this order; a block may occur twice."""
    config, encoder = model.config, params["encoder"]
    if list(order) == list(range(config.num_hidden_layers)):
        return model, params
    blocks = jax.tree.map(lambda leaf: leaf[np.array(order)], encoder["layers"])
    config = dataclasses.replace(config, num_hidden_layers=len(order))
    return model.clone(config=config), {**params, "encoder": {**encoder, "layers": blocks}}


def read_neurons(
    where: str, config: ModelConfig, params: Any
) -> tuple[np.ndarray, np.ndarray | float]:
    """Reads which neurons are held, and at which value: ``chosen`` and ``value`` of ``clamp``.

    Args:
      where: ``FILE.npz`` with both; or ``RESULT.json:deu_Latn``, what ``evaluate neurons`` found to
        be a language's own at the last step of the result, held at 0.

    Raises:
      UserError: there is no such file or language, or it is of another model.
    """
    result, of, language = where.rpartition(".json:")
    if of:
        return _own_neurons(Path(f"{result}.json"), language, config, params), 0.0
    shape = config.num_hidden_layers, config.intermediate_size
    try:
        with np.load(where, allow_pickle=False) as file:
            chosen, value = file["chosen"].astype(bool), file["value"].astype(np.float32)
    except _UNREADABLE as error:
        raise UserError(
            f"{where} cannot be read ({error}); a file of neurons is a .npz with chosen (bool) and "
            "value (float), each [layers, neurons]"
        ) from None
    if chosen.shape != shape or value.shape != shape:
        raise UserError(
            f"{where} is of another model: chosen {chosen.shape} and value {value.shape}, this one "
            f"has {shape[0]} layers of {shape[1]} neurons"
        )
    return chosen, value


def _own_neurons(path: Path, language: str, config: ModelConfig, params: Any) -> np.ndarray:
    try:
        result = json.loads(path.read_bytes())
        own, digest = result["own_neurons"], result["digests"][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); it is no result of evaluate neurons"
        ) from None
    if digest != parameter_digest(params):
        raise UserError(
            f"{path} is of another model, or of another step: its neurons are not this model's"
        )
    if not own.get(language):
        having = ", ".join(name for name, neurons in own.items() if neurons)
        raise UserError(f"{path} has no neurons of {language}; it has some of {having or 'none'}")
    chosen = np.zeros((config.num_hidden_layers, config.intermediate_size), bool)
    chosen[tuple(np.array(own[language]).T)] = True
    return chosen


def parameter_digest(params: Any) -> str:
    """Returns the SHA-256 of the bytes of all parameters, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _sub_layer(
    params: Any, edit: Edit, layer: int, config: ModelConfig, mean: jax.Array | None
) -> Any:
    if edit.part == "norm":
        return plain_norms(params, layer)
    if edit.how == "rotated":
        return rotated(params, edit.part, layer)
    if edit.part != "head":
        return constant(params, edit.part, layer, 0 if mean is None else mean[layer])
    if edit.head >= config.num_attention_heads:
        raise UserError(f"{edit}: the heads are 0 to {config.num_attention_heads - 1}")
    start, size = edit.head * config.head_size, config.head_size
    value = jnp.zeros(size) if mean is None else mean[layer, start : start + size]
    return constant_head(params, layer, edit.head, value)


def _reordered(order: Sequence[int], edit: Edit, config: ModelConfig) -> list[int]:
    """Returns the blocks that are left, by their numbers in the model before any edit."""
    layers = edit.layers(config)
    if edit.how == "drop":
        order = [block for block in order if block not in layers]
    elif edit.how == "repeat":
        order = [block for block in order for _ in range(1 + (block in layers))]
    else:
        last = config.num_hidden_layers - 1
        if len(layers) > 1:
            raise UserError(f"{edit}: name one block, which changes places with the next")
        if layers[-1] == last:
            raise UserError(f"{edit}: block {last} is the last, and has none to change places with")
        other = {layers[0]: layers[0] + 1, layers[0] + 1: layers[0]}
        order = [other.get(block, block) for block in order]
    if not order:
        raise UserError(f"{edit}: no block is left")
    return order


def _put(leaf: jax.Array, where: Any, value: jax.Array | float) -> jax.Array:
    return jnp.asarray(leaf).at[where].set(value)


def _layers(params: Any, path: tuple[str, ...]) -> Any:
    leaf = params["encoder"]["layers"]
    for name in path:
        leaf = leaf[name]
    return leaf


def _with_layers(params: Any, path: tuple[str, ...], leaf: Any) -> Any:
    """Returns the parameters with another leaf at a path below the stacked layers."""
    for depth in range(len(path) - 1, -1, -1):
        leaf = {**_layers(params, path[:depth]), path[depth]: leaf}
    return {**params, "encoder": {**params["encoder"], "layers": leaf}}
