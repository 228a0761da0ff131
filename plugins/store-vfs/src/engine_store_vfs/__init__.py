"""Image layers and root file systems as plain copies: works on every file system."""
