"""Memories behind the internal port."""
