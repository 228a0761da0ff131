"""System call filter: the default profile, and profiles in Docker's JSON form."""
