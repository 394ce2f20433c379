"""The HTTP face: the only room that knows litestar."""
