"""The loop, its state, and the folder of a run."""
