"""From weights to embeddings: folding, symmetries and the encoders."""
