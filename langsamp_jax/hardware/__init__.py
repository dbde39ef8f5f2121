"""The machine: its devices, what a CPU needs, the compilation cache."""
