"""The sections about the inside of the model: neurons, probes, concepts, ablation."""
