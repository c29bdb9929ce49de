"""The live gateway without its sockets."""
