"""Untrusted bytes become checked values here and nowhere else; Pillow and numpy only, so that a child stays small."""
