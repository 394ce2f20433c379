"""Qwen3-VL behind the OpenAI and Google `generateContent` APIs, with metered keys for many tenants."""

from importlib.metadata import version

__version__ = version("qwen3vl-compat")
