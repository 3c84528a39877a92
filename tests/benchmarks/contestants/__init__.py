"""Tests of `benchmarks.contestants`."""
