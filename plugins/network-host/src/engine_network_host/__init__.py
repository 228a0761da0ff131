"""The host's own network stack."""
