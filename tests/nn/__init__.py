"""Tests of `jaxdl.nn`."""
