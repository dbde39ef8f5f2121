"""Synthetic languages and a world of text in them."""
