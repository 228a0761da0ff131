"""Linux capabilities: Docker's default set, --cap-add, --cap-drop, --privileged."""
