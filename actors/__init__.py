"""The event-sourced actor system: kernel, journal, and the four actors of a model runner."""
