"""Depth as PNGs: `format` (KITTI's and NYU's)."""
