"""Tests of `experiments.lesson`."""
