"""Which running requests move to another node, and why: rules, and what carries them out. Pure."""
