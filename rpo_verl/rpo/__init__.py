"""RPO itself, in plain Python and numpy: question → cached answer → start → group → shaped reward, credit, cache."""
