"""The tests, in folders named for the packages that they test."""
