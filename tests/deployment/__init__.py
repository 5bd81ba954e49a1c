"""The container files, checked without an engine: real Compose and hadolint, and laws over what Compose resolves."""
