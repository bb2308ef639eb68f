"""Scores of a model: held-out text and multiple-choice tasks, and their records."""
