"""The networks of the suite: read registry first, then resnet."""
