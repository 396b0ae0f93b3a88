"""Runs and searches, to look at."""
