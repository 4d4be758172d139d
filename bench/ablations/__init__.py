"""Which of the sources' design choices matter: one small sweep for each."""
