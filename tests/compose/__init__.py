"""The container files for real: images built from the Dockerfile, the stack up through Compose, no Docker engine."""
