"""What the Python client does: everything but the sockets, which two thin faces lend it (`transport`)."""
