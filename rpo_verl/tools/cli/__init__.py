"""`rpo-verl`: what can be done with RPO's data outside a training run."""
