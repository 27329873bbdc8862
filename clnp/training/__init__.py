"""One fit: epochs over a split, scores, captured steps, cached frozen activations."""
