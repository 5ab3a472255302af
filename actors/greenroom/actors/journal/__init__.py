"""The journal: one port, and the stores behind it."""
