"""Weights & Biases and other trackers."""
