"""The settings that decide the architecture of a model."""

from typing import Literal

from langsamp_jax.config import configurable, require

Implementation = Literal["auto", "xla", "cudnn", "splash"]
VOCAB_MULTIPLE = 128  # the vocabulary is padded to this inside the model, so that it can be sharded


@configurable("model")
class ModelConfig:
    """The architecture; XLM-R base unless said otherwise. Sizes of the vocabulary and of the two
    tables come from the data, not from here.

    Attributes:
      architecture: xlm-roberta; xlm-roberta-xl (XL and XXL), which normalises what goes into a
        block and the last output, not what comes out of each; or bert (multilingual BERT), which
        differs from XLM-R in names and settings only.
      hidden_size: width of the encoder, of its word embeddings and of the two tables.
      num_hidden_layers: layers of the encoder.
      num_attention_heads: heads of a layer, a divisor of hidden_size.
      intermediate_size: width of a layer's feed-forward block.
      max_length: most tokens of a row.
      hidden_dropout: rate of dropout of the embeddings and of what each block gives.
      attention_dropout: rate of dropout of the attention probabilities.
      layer_norm_eps: epsilon of LayerNorm.
      initializer_range: standard deviation of the first parameters.
      placement: where the language and script vectors are added: to the encoder's output
        (LangSAMP), to the word embeddings at the input, or nowhere (none, plain XLM-R).
      use_language: whether there is a language table.
      use_script: whether there is a script table.
      tables: how the two tables are trained: trained as they should be, or as controls, either
        frozen at their random start, or shuffled: each row of text takes the ids of a random row
        of its batch, so that the vectors are there and say nothing.
      dtype: of the computation; parameters are float32.
      attention: its implementation, see models/attention.py; auto is the quickest.
      remat: what the backward pass recomputes instead of keeping it: nothing (none), all of a
        layer but its matrix products (products), or all of it (layer).
    """

    architecture: Literal["xlm-roberta", "xlm-roberta-xl", "bert"] = "xlm-roberta"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    placement: Literal["output", "input", "none"] = "output"
    use_language: bool = True
    use_script: bool = True
    tables: Literal["trained", "frozen", "shuffled"] = "trained"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Implementation = "auto"
    remat: Literal["none", "products", "layer"] = "none"

    def check(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for field in (*sizes, "max_length"):
            require(getattr(self, field) > 0, self, field, "a whole number above 0")
        for field in ("hidden_dropout", "attention_dropout"):
            require(0 <= getattr(self, field) < 1, self, field, "0 or more, below 1")
        for field in ("layer_norm_eps", "initializer_range"):
            require(getattr(self, field) > 0, self, field, "a number above 0")
        divides = self.hidden_size % self.num_attention_heads == 0
        require(
            divides, self, "num_attention_heads", f"a divisor of hidden_size {self.hidden_size}"
        )
        chosen = self.placement == "none" or self.use_language or self.use_script
        require(chosen, self, "placement", "'none' where neither language nor script is used")

    @property
    def head_size(self) -> int:
        """Returns the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_dropout(self) -> bool:
        """Returns whether a training step drops anything."""
        return self.hidden_dropout > 0 or self.attention_dropout > 0

    @property
    def norm_first(self) -> bool:
        """Returns whether LayerNorm comes before each part of a block, and not behind it."""
        return self.architecture == "xlm-roberta-xl"
