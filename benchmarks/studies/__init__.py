"""Studies outside of the table, one command each, such as `python -m benchmarks.studies.parity`."""
