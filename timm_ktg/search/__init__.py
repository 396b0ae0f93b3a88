"""The search for the graph that makes the target most accurate."""
