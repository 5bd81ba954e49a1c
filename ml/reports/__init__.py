"""The figures and the self-test of a finished training: their numbers, and their plots."""
