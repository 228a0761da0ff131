"""Container logs in files: json-file and local, with rotation; and none."""
