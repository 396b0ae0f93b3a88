"""A graph in a training loop of your own."""
