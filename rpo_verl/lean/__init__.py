"""A layer for any veRL training: the same gradients for less time. It knows nothing of RPO."""
