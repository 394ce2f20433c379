"""What other programs plug into: a Python client, LangChain, tools, MCP and a screen agent."""
