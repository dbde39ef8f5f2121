"""Offline preparation: synthetic and real corpora, tokenizer training, the packed store."""
