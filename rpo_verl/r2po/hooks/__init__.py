"""R²PO's adapters to veRL and vLLM."""

#: Name of the section, the Hydra group, and the folder of the head in a checkpoint.
NAME = "r2po"
