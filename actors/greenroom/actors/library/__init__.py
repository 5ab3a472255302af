"""The actor that owns the models in the store and the pulls that bring them."""
