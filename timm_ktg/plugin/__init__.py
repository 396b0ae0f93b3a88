"""A graph in your own training loop."""
