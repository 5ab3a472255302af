"""Engine processes: keepers, launchers, readiness, capsules."""
