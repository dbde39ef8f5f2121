"""The encoder, its head, and LangSAMP's vectors."""
