"""Synthetic images of an object before a scene, in which the scene may give the label away."""
