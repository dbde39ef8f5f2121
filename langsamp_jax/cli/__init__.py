"""The command ``langsamp``."""
