"""LangSAMP for PyTorch: an encoder whose language-modelling head knows language and script.

    o = h + E_lang[language] + E_script[script]        logits = LM head(o)

h is the encoder's last state of a token. Every token of a sequence, the special ones included,
gets the same two vectors. A folder DIR that holds this file is loaded with

    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(DIR, trust_remote_code=True)
    inputs = tokenizer(f"Berlin ist eine {tokenizer.mask_token}.", return_tensors="pt")
    logits = model(**inputs, language="deu_Latn").logits
    print(tokenizer.decode(logits[inputs.input_ids == tokenizer.mask_token_id].argmax(-1)))

Without a language no vector is added: the encoder is universal, and its plain head is what
``pipeline("fill-mask", model=model, tokenizer=tokenizer)`` runs. ``AutoModel`` loads the encoder
alone.

``config.json`` says what the tables hold: ``languages`` and ``scripts`` name their rows in order,
and an empty list stands for no table. ``placement`` is "output" as above, or "input": there the
vectors are added to the word embeddings, and the encoder always needs them.
"""

import difflib

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLModel,
)
from transformers.modeling_outputs import MaskedLMOutput


class LangSampEncoder:
    """What the three encoders share: the two tables, and their use at the input.

    ``language`` and ``script`` are a name ("deu", "Latn") or a row of the table; or one for each
    sequence: a list of these, or a tensor of rows [batch]. ``language="deu_Latn"`` gives both.
    A model with both tables takes both or neither; a table that it lacks is not asked for.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^cls\."]

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
        size = config.hidden_size
        if config.languages:
            self.embeddings.lang_type_embeddings = nn.Embedding(len(config.languages), size)
        if config.scripts:
            self.embeddings.script_type_embeddings = nn.Embedding(len(config.scripts), size)
        self.post_init()

    def forward(
        self,
        input_ids=None,  # [batch, length], as are the next two
        attention_mask=None,
        *,
        position_ids=None,
        inputs_embeds=None,  # [batch, length, hidden]
        language=None,
        script=None,
        **kwargs,
    ):
        """As the stock encoder. With placement "output" language and script change nothing."""
        if self.config.placement == "input":
            if inputs_embeds is None:
                inputs_embeds = self.embeddings.word_embeddings(input_ids)
                if position_ids is None:
                    position_ids = self._position_ids(input_ids)
                input_ids = None
            inputs_embeds = inputs_embeds + self.vectors(language, script, len(inputs_embeds))
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def vectors(self, language, script, batch):
        """E_lang[language] + E_script[script]: [batch, 1, hidden], or [1, 1, hidden] for one.

        Raises:
          ValueError: a name or row that the table does not have, or not one for each sequence.
        """
        language, script = _split(language, script)
        config, embeddings = self.config, self.embeddings
        total = 0
        if config.languages:
            rows = _rows("language", language, config.languages, batch)
            total = total + embeddings.lang_type_embeddings(rows.to(self.device))
        if config.scripts:
            rows = _rows("script", script, config.scripts, batch)
            total = total + embeddings.script_type_embeddings(rows.to(self.device))
        return total[:, None]

    def _position_ids(self, input_ids):
        """XLM-R counts the tokens that are no padding, from pad_token_id + 1; BERT counts all.

        The stock encoder can only tell padding where it embeds the ids itself.
        """
        padding = getattr(self.embeddings, "padding_idx", None)
        if padding is None:
            return None
        is_token = input_ids.ne(padding).long()
        return is_token.cumsum(dim=1) * is_token + padding


class LangSampForMaskedLM:
    """What the three masked language models share."""

    accepts_loss_kwargs = False  # the loss is a mean; the Trainer averages accumulated batches
    _supports_param_buffer_assignment = False  # some releases of transformers 4 lose the bias

    def __init__(self, config):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        self.post_init()  # ties the decoder to the word embeddings of this encoder

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        *,
        language=None,
        script=None,
        labels=None,
        return_dict=None,
        **kwargs,
    ):
        """The logits [batch, length, vocabulary].

        Args:
          input_ids, attention_mask: [batch, length].
          language, script: see LangSampEncoder. Without them, placement "output" is the plain head.
          labels: [batch, length], -100 where there is none; the loss is the mean over the others.
        """
        outputs = self.base_model(
            input_ids,
            attention_mask,
            language=language,
            script=script,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        named = language is not None or script is not None
        if named and self.config.placement == "output":
            hidden = hidden + self.base_model.vectors(language, script, len(hidden))
        logits = self.get_submodule(self.head)(hidden)
        loss = None
        if labels is not None:
            targets = labels.to(logits.device).flatten()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100)
        output = MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output.to_tuple() if return_dict is False else output


class LangSampConfig:
    """What the three configurations share; see the head of this file."""

    languages = ()
    scripts = ()
    placement = "output"


class LangSampXLMRobertaConfig(LangSampConfig, XLMRobertaConfig):
    model_type = "langsamp-xlm-roberta"


class LangSampXLMRobertaModel(LangSampEncoder, XLMRobertaModel):
    config_class = LangSampXLMRobertaConfig


class LangSampXLMRobertaForMaskedLM(LangSampForMaskedLM, XLMRobertaForMaskedLM):
    config_class = LangSampXLMRobertaConfig
    encoder_class, head = LangSampXLMRobertaModel, "lm_head"


class LangSampXLMRobertaXLConfig(LangSampConfig, XLMRobertaXLConfig):
    model_type = "langsamp-xlm-roberta-xl"


class LangSampXLMRobertaXLModel(LangSampEncoder, XLMRobertaXLModel):
    config_class = LangSampXLMRobertaXLConfig


class LangSampXLMRobertaXLForMaskedLM(LangSampForMaskedLM, XLMRobertaXLForMaskedLM):
    config_class = LangSampXLMRobertaXLConfig
    encoder_class, head = LangSampXLMRobertaXLModel, "lm_head"


class LangSampBertConfig(LangSampConfig, BertConfig):
    model_type = "langsamp-bert"


class LangSampBertModel(LangSampEncoder, BertModel):
    config_class = LangSampBertConfig


class LangSampBertForMaskedLM(LangSampForMaskedLM, BertForMaskedLM):
    config_class = LangSampBertConfig
    encoder_class, head = LangSampBertModel, "cls"


def _split(language, script):
    """Takes "deu_Latn", or a list of such names, apart."""
    names = [language] if isinstance(language, str) else language
    if script is not None or not isinstance(names, (list, tuple)):
        return language, script
    if not all(isinstance(name, str) and "_" in name for name in names):
        return language, script
    parts = [name.partition("_") for name in names]
    return [part[0] for part in parts], [part[2] for part in parts]


def _rows(kind, wanted, names, batch):
    """The rows of the table ``names`` that ``wanted`` stands for: int64 [batch] or [1]."""
    if wanted is None:
        raise ValueError(f'this model needs a {kind}, for example language="deu_Latn"')
    if isinstance(wanted, (str, int)):
        wanted = [wanted]
    if isinstance(wanted, (list, tuple)):
        wanted = torch.tensor([_row(kind, item, names) for item in wanted])
    rows = torch.as_tensor(wanted).reshape(-1)
    if len(rows) not in (1, batch):
        raise ValueError(f"{len(rows)} {kind} rows for a batch of {batch}")
    return rows


def _row(kind, wanted, names):
    if isinstance(wanted, str):
        if wanted not in names:
            close = ", ".join(difflib.get_close_matches(wanted, names, n=3, cutoff=0.5))
            hint = f"; did you mean {close}?" if close else ""
            raise ValueError(f"the model has no {kind} {wanted!r}{hint}")
        return names.index(wanted)
    if not 0 <= wanted < len(names):
        raise ValueError(f"the model has no {kind} row {wanted}; it has {len(names)} rows")
    return wanted
