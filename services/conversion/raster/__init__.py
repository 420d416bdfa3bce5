"""Maps as arrays: PNG and TIFF in and out, palettes, runs of pixels. Pure; knows no task and no dataset.

Every decoder bounds what it makes of a file before it makes it, and raises RasterError alone.
"""
