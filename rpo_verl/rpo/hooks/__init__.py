"""One thin adapter per hook of veRL; everything here may import the pure rooms, never the reverse."""

#: Name under which RPO's components stand in veRL's registries.
NAME = "rpo"

#: veRL's agent loop whose rows get prefixes; rows that name another one pass through untouched.
SINGLE_TURN = "single_turn_agent"
