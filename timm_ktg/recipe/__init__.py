"""Recipes: a run as a YAML file. Only the programs use them."""
