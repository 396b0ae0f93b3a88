"""The method: nodes that learn from each other, through losses and gates."""
