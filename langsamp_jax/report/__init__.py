"""The report: one self-contained HTML page about a run, and its figures for a paper."""
