"""Recipes: a run as a YAML file. Nothing else in the package knows of them but the programs."""
