"""Placement policies, one a file; `registry` maps names to them."""
