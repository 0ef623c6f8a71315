"""One thin adapter per hook of veRL; everything here may import the pure rooms, never the reverse."""
