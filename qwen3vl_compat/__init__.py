"""Qwen3-VL behind OpenAI's, Google's and Anthropic's APIs, with metered keys for many tenants."""

from importlib.metadata import version

__version__ = version("qwen3vl-compat")
