"""Evaluation data as it is distributed."""
