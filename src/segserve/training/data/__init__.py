"""The training data: finding, checking, decoding, keeping, and dealing it out in batches."""
