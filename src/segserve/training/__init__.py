"""One training, from a folder of strokes to a finished model folder."""
