"""Files and object stores: where they lie, writing them whole, progress of long work."""
