"""What a user runs beside a training: the command `rpo-verl` and what it is made of."""
