"""Pretrained backbones as feature extractors: what they compute of every image, and what follows from it."""
