"""Where the nodes of a gateway are looked for, one kind a file."""
