"""Every exercise of the workshop in one command."""
