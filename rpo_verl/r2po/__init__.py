"""R²PO: rollouts from a residual head that inference drops (arXiv 2601.11960). Pure: torch and numpy, no veRL."""
