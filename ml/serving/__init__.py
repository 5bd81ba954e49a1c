"""Trained models: the archive that holds one, and the predictor that loads it."""
