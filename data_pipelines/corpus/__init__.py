"""Lines of text out of files of any supported form, and their cleaning."""
