"""Models: names, where they come from, and the store."""
