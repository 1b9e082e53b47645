"""Backbones, which turn images into features: pretrained has the networks known by name."""
