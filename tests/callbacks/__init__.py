"""Tests of `jaxdl.callbacks`."""
