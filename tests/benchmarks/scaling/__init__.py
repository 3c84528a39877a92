"""Tests of `benchmarks.scaling`."""
