"""Faults by name, with what must hold under them: in virtual time (`virtual`) and on real processes (`live`)."""
