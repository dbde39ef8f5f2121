"""From text to a packed store, in stages that can be interrupted."""
