"""A run of the command line: its directory, its files and what it shows at its end."""
