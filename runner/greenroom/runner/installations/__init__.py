"""Installations on disk: building, verifying, sweeping."""
