"""Comparisons of jaxdl with other libraries: the same data and the same work, measured in turn."""
