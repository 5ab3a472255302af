"""The front door: one module an API family."""
