"""Backbones: a CNN built once, converted to a flatbuffer, and run by LiteRT as a pure function of a photo."""
