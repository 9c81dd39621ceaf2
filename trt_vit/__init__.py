"""Turns a Vision Transformer into an inference engine and classifies directories of images with it."""

__version__ = "0.1.0"
