"""Tests of `experiments.cifar10`."""
