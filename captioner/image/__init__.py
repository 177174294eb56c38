"""A photograph in, upright RGB pixels out; pixels in, the model's ``pixel_values``; regions back to pixels.

``decode`` is the way of one photograph. ``formats`` opens what its first bytes say it is, with a file for
each format that needs more than Pillow's own class. ``colour`` makes RGB of any mode, and ``processor`` makes
a model's input.
"""

from captioner.image.decode import MAX_BYTES, MAX_PIXELS, ImageSource, Photo, decode_image
from captioner.image.processor import ImageProcessor, PixelBox, region_box

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageProcessor",
    "ImageSource",
    "Photo",
    "PixelBox",
    "decode_image",
    "region_box",
]
