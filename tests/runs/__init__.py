"""Tests of `jaxdl.runs`."""
