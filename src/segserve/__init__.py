"""Segserve: one server that gives desktop image viewers segmentation models."""

__version__ = "0.1.0"
