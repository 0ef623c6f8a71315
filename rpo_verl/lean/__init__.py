"""A layer for any veRL training: the same gradients for less time, or fewer rows on demand. It knows nothing of RPO."""
