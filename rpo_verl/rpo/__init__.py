"""The method itself, in plain Python and numpy: question → cached answer → prefix → shaped reward → kept response."""
