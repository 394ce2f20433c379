"""The protocols clients speak. A wire turns bytes into a Request and Events into bytes; it does no I/O, holds no rule.

A server's half (openai_chat, generate_content, anthropic_messages) has decode_request, encode_completion, encode_stream
and encode_error; the client's half beside it (openai_client with openai_answers, google_client, anthropic_client) has
encode_request and decode_stream. Of openai_responses the last two of the server's are one, `Answering`.
"""
