"""One training in several processes: starting them, what they exchange, and networks divided among them."""
