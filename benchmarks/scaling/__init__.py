"""Strong and weak scaling over processes: `python -m benchmarks.scaling`, and a model of it."""
