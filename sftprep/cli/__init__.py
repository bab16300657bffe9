"""Arguments to config to one call to an exit code; one thin file a command."""
