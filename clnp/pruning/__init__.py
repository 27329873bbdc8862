"""Choice of the channels that stay: activity, thresholds, the margin of accuracy given up."""
