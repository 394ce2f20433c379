"""One file a revision, named by its number; never edited once released."""
