"""What a model is: the file, its own metadata, what the user asked for, and what follows from the three."""
