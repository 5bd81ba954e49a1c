"""Features of a frozen network: computed once, kept, and what is done with them."""
