"""Measures a method: accuracies, the ranking of given labels, attention maps, and masks on images."""
