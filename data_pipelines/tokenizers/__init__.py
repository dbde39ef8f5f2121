"""Training tokenizers, and extending published ones."""
