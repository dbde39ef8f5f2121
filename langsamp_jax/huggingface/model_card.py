"""Writes the README.md of an exported folder."""

import dataclasses
import json

from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.huggingface.layout import MODEL_CLASS
from langsamp_jax.languages.inventory import split_language_script
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.tokenizer import Tokenizer

_USAGE = {
    "universal": (
        "from transformers import AutoModel, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(DIR)",
        "encoder = AutoModel.from_pretrained(DIR, add_pooling_layer=False)  # needs no language",
        'states = encoder(**tokenizer("Guten Morgen", return_tensors="pt")).last_hidden_state',
    ),
    "fold": (
        "from transformers import pipeline",
        "",
        'fill_mask = pipeline("fill-mask", model=DIR, tokenizer=DIR)',
        'fill_mask(f"... {fill_mask.tokenizer.mask_token} ...")',
    ),
    "full": (
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)",
        "model = AutoModelForMaskedLM.from_pretrained(DIR, trust_remote_code=True)",
        'inputs = tokenizer(f"... {tokenizer.mask_token} ...", return_tensors="pt")',
        'logits = model(**inputs, language="NAME").logits',
    ),
}


@dataclasses.dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    Attributes:
      start: the folder that its first weights came from; None: they were random.
      batch_size: rows of a step.
      sequence_length: tokens of a row.
      mask_rate: the share of the tokens that is hidden.
      tokens: training tokens of each language-script.
      store: the fingerprint of its data.
      edits: what was changed after training, see ``models/edits.py``.
    """

    step: int
    start: str | None
    batch_size: int
    sequence_length: int
    mixture: MixtureConfig
    mask_rate: float
    tokens: dict[str, int]
    store: str
    edits: tuple[str, ...] = ()


def model_card(
    model: ModelConfig, tokenizer: Tokenizer, facts: TrainingFacts, fold: str | None, full: bool
) -> str:
    """Returns what the model is, what it was trained on, and how it is used, as Markdown."""
    rows = facts.step * facts.batch_size
    languages = sorted({split_language_script(name)[0] for name in facts.tokens})
    example = fold or max(facts.tokens, key=facts.tokens.get)
    usage = _USAGE["full" if full else "fold" if fold else "universal"]
    start = facts.start
    counts = sorted(facts.tokens.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [langsamp, multilingual, masked-lm]",
        f"language: {json.dumps(languages)}",
        "---",
        "",
        _title(model, fold, full),
        "",
        _kind(model, fold, full),
        "",
        "```python",
        *(line.replace("NAME", example) for line in usage),
        "```",
        "",
        "## Training",
        "",
        f"- start: {'random weights' if start is None else 'the weights of ' + _name(start)}",
        f"- {facts.step:,} steps of {facts.batch_size:,} rows of {facts.sequence_length} tokens: "
        f"{rows * facts.sequence_length:,} tokens",
        f"- mixture: {_mixture(facts.mixture)}; {facts.mask_rate:.0%} of the tokens masked",
        f"- data: {_tokens(facts)} in {len(counts)} language-scripts "
        f"(fingerprint {facts.store[:16]})",
        f"- {len(tokenizer.pieces):,} pieces; hidden size {model.hidden_size}, "
        f"{model.num_hidden_layers} layers, {model.num_attention_heads} heads, at most "
        f"{model.max_length} tokens (trained up to {facts.sequence_length})",
        *(f"- changed after training: `{_unplaced(edit)}`" for edit in facts.edits),
        "",
        "| language-script | training tokens |",
        "|---|---:|",
        *(f"| {name} | {tokens:,} |" for name, tokens in counts),
    ]
    return "\n".join(lines) + "\n"


def _tokens(facts: TrainingFacts) -> str:
    """Says how many tokens there were; a seqio Mixture has not counted them."""
    tokens = sum(facts.tokens.values())
    return f"{tokens:,} tokens" if tokens else "a seqio Mixture, not counted,"


def _mixture(mixture: MixtureConfig) -> str:
    """Says the rule, the temperature, and what else is not as it is by default."""
    parts = [f"rule {mixture.rule}", f"temperature {mixture.temperature:g}"]
    for field in dataclasses.fields(mixture):
        value = getattr(mixture, field.name)
        if field.name not in ("rule", "temperature") and value != field.default:
            entries = f"({len(value)} entries)" if isinstance(value, (dict, list)) else value
            parts.append(f"{field.name} {entries}")
    return ", ".join(parts)


def _title(model: ModelConfig, fold: str | None, full: bool) -> str:
    """Returns the heading of the card."""
    family = MODEL_CLASS[model.architecture]
    if full:
        return f"# LangSAMP model on {family}, with its language and script vectors"
    return f"# {family} encoder" + (f" with {fold} folded in" if fold else "")


def _kind(model: ModelConfig, fold: str | None, full: bool) -> str:
    """Says what the exported form is."""
    if full:
        return (
            "A masked language model with a vector for each language and each script, which are "
            f"added to the encoder's {model.placement}. The code is in this folder; the names of "
            "the rows are in `config.json` and `inventory.json`."
        )
    if fold:
        return (
            f"A stock masked language model whose fill-mask is that of the LangSAMP model for "
            f"{fold}: its language and script vectors are folded in. The full form of the export "
            "serves all languages."
        )
    trained = {
        "output": "It was pretrained with LangSAMP (arXiv 2409.18199): language and script vectors "
        "took over, in front of the head, what is particular to a language. They are not part of "
        "it, and it needs no language id.",
        "none": "It was pretrained without language or script vectors.",
    }
    return (
        f"A multilingual text encoder. {trained[model.placement]} Its plain head loads with "
        "AutoModelForMaskedLM. The pooler that AutoModel adds by default was never trained and is "
        "not stored."
    )


def _unplaced(edit: str) -> str:
    """Returns an edit with its file's name alone."""
    what, _, how = edit.partition("=")
    return f"{what}={_name(how)}"


def _name(path: str) -> str:
    """Returns a folder's name alone; where it lay is nobody's business."""
    return path.rstrip("/").rsplit("/", 1)[-1]
