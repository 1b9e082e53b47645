"""Pretrained networks that turn images into features: read choice first."""
