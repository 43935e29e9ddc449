"""The command lines of the host package."""
