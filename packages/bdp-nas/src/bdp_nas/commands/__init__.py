"""What ``[run]`` adds: the command line, one file per command."""
