"""Volumes in a directory of this host."""
