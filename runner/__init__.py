"""What users meet: backends, installations, engines, models, and the daemon with its HTTP and command line."""
