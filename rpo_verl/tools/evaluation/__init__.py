"""pass@k of a checkpoint: questions, samples, results, comparisons."""
