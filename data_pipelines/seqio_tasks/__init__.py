"""seqio Tasks and Mixtures: defined, compiled into a store, or read live."""
