"""Triggers: which of them an event runs."""
