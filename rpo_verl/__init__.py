"""RPO for veRL: reinforcement fine-tuning that generates only the suffix of a cached answer (arXiv 2601.19404)."""

__version__ = "0.1.0"
