"""What several kinds of noise share; a file here is no kind."""
