"""Uses what a run trained: measures it anew, predicts with it, exports it."""
