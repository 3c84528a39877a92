"""Tests of `jaxdl.distributed`."""
