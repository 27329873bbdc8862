"""A task from its begin to its report: the learner, its settings, custom training loops."""
