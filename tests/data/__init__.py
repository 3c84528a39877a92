"""Tests of `jaxdl.data`."""
