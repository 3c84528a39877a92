"""ConvNets on CIFAR-10."""
