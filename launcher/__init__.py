"""The command lines and the supervisor."""
