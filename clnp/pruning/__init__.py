"""Which channels stay: activity, thresholds, the margin of accuracy given up."""
