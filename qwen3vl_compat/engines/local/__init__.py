"""Qwen3-VL run in this process."""
