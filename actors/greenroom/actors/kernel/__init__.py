"""Runs pure, event-sourced cores as Pykka actors. It knows nothing of what they are for."""
