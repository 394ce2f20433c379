"""Is a running server what its clients expect? Speaks HTTP as they do, and knows none of the server's own code."""
