"""Pretrained networks that turn images into features, and the features of a run."""
