"""Figures: `style`, which they share, and a module a study with one function a figure: data in, a figure out."""
