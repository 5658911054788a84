"""The commands of `server-toolkit`, one file a group; each adds its own in `register(app)`."""
