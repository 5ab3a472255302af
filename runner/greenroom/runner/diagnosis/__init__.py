"""Diagnosis from the journal: log, replay, why, bundle."""
