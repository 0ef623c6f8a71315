"""Work with a model and data sets outside training: rows, rewards, vLLM offline, stores of answers."""
