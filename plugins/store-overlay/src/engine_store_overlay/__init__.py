"""Image layers and root file systems on overlayfs."""
