"""The protocols clients speak. A wire turns bytes into a Request and Events into bytes; it does no I/O, holds no rule.

Each module has the same six names: decode_request, encode_completion, encode_stream, encode_error for a server, and
encode_request, decode_stream for a client.
"""
