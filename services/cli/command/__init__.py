"""Commands, one file or folder a noun."""
