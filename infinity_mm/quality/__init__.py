"""Score records' policy: keep, rewrite or drop, as a pure function of score and cut-offs."""
