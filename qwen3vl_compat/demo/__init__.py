"""The bundled demonstration model: a small real Qwen3-VL, its pictures and how it was trained."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The checkpoint folder, in the layout every Qwen3-VL checkpoint has."""
SAMPLE = Path(__file__).parent / "sample.png"
"""A small picture that says HELLO42, for the first try."""
