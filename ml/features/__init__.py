"""Pretrained backbones as feature extractors: what they compute of every image, kept on disk, and what is read off it."""
