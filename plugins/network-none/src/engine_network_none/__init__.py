"""A network namespace with nothing but loopback."""
