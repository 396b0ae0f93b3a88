"""A recipe to a trained graph."""
