"""The training loop and its parts: setup, phases, sampler, checkpoints, randomness, memory, recorded steps."""
