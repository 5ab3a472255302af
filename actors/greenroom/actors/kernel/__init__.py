"""The kernel: pure cores in thin shells on Pykka. It knows none of our events."""
