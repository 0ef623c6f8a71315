"""One thin module per hook of veRL; everything here may import the core, never the reverse."""
