"""Loaded models, each a process of its own that can be ended at any moment without losing anything."""
