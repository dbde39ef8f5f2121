"""The sections of the page, a file each: ``section(results)`` returns its figures and tables."""
