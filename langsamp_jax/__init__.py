"""LangSAMP-JAX: multilingual encoder pretraining with language and script embeddings."""

__version__ = "0.1.0"
