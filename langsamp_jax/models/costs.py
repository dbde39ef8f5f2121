"""What a model costs: its parameters, the useful operations of a step, its activations' memory.

Useful is what the model asks for, however it is computed. Counted are matrix products and
attention, two operations for a multiplication and addition, the backward pass as twice the forward
one. Not counted: what is computed again to save memory, padding of the vocabulary, elementwise
work, the optimizer.
"""

from langsamp_jax.models.config import VOCAB_MULTIPLE, ModelConfig

BACKWARD = 2  # one product for the gradient of each of its two factors


def parameter_count(config: ModelConfig, vocab_size: int, languages: int, scripts: int) -> int:
    """Returns how many numbers a model trains, the rows that pad its vocabulary among them.

    Args:
      languages, scripts: rows of the two tables, of which only those that are used are counted.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    padded_vocabulary = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    layer_norm = 2 * hidden  # scale and bias
    square = hidden * hidden + hidden  # a dense layer with its bias
    feed_forward = hidden * inner + inner + inner * hidden + hidden
    layers = config.num_hidden_layers * (4 * square + feed_forward + 2 * layer_norm)
    embeddings = (padded_vocabulary + config.max_length) * hidden + layer_norm
    head = square + layer_norm + padded_vocabulary  # the decoder is tied: only its bias is its own
    rows = languages * config.use_language + scripts * config.use_script
    tables = 0 if config.placement == "none" else rows * hidden
    return embeddings + layers + head + tables


def forward_flops(
    config: ModelConfig, vocab_size: int, rows: int, length: int, num_targets: int
) -> dict[str, float]:
    """Returns the FLOPs of one forward pass by part.

    Args:
      rows: of a batch, each of ``length`` positions.
      num_targets: predicted positions a row; the head sees these alone.

    Returns:
      ``layers`` (projections and feed-forward), ``attention`` (scores, weighted sums) and ``head``
      (dense and decoder).
    """
    hidden, tokens, targets = config.hidden_size, rows * length, rows * num_targets
    weights = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    return {
        "layers": 2.0 * tokens * config.num_hidden_layers * weights,
        "attention": 2.0 * tokens * config.num_hidden_layers * 2 * length * hidden,
        "head": 2.0 * targets * (hidden**2 + hidden * vocab_size),
    }


def step_flops(
    config: ModelConfig, vocab_size: int, rows: int, length: int, num_targets: int
) -> float:
    """Returns the useful FLOPs of one training step; arguments as ``forward_flops``."""
    parts = forward_flops(config, vocab_size, rows, length, num_targets)
    return (1 + BACKWARD) * sum(parts.values())


def activation_bytes(config: ModelConfig, length: int) -> int:
    """Returns what the backward pass keeps of one row, in bytes, roughly.

    A layer keeps about twelve states of the hidden size, two of the intermediate size and the
    attention weights twice; with remat its matrix products, or only its input.
    """
    item = 2 if config.dtype == "bfloat16" else 4
    per_layer = length * config.hidden_size
    if config.remat == "products":
        per_layer = length * (6 * config.hidden_size + config.intermediate_size)
    if config.remat == "none":
        attention = 2 * config.num_attention_heads * length * length
        per_layer = length * (12 * config.hidden_size + 2 * config.intermediate_size) + attention
    return config.num_hidden_layers * per_layer * item
