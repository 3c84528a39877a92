"""Tests of `experiments.weather`."""
