"""Trains the graph of a recipe."""
