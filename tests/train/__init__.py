"""Tests of `jaxdl.train`."""
