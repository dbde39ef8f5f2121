"""batch = f(store, mixture, seed, step)."""
