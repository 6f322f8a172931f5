"""A pixel classifier is trained over HTTP on strokes, on real histology."""
