"""The CIFAR-10 speed run: `python -m benchmarks.speedrun`."""
