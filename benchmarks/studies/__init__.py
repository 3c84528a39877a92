"""Measurements beside the table, a command each: `python -m benchmarks.studies.parity` and so on."""
