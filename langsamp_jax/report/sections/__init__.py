"""The sections of the page, a file each: ``section(results)``, and its ``POSITION``."""
