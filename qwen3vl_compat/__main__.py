"""`python -m qwen3vl_compat` is the command `qwen3vl-compat`."""

from qwen3vl_compat.cli import main

main()
