"""Runs containers with an OCI runtime binary: runc, crun or any other."""
