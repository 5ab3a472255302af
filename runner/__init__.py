"""What users meet: backends, installations, engines, models, daemon, HTTP and command line."""
