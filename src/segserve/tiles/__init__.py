"""Two-dimensional tiles and patches: files to arrays, normalisation, padding."""
