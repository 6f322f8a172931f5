"""What runs a network: `logits = engine(batch)`."""
