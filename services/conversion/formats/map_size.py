"""Whether a map can belong to its image: maps may be smaller, but have the image's shape, as it is shown."""

from __future__ import annotations

from services.conversion.index import ImageSize


class MapSizeError(Exception):
    """The map cannot belong to the image; says which `rule` it breaks."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(problem)
        self.rule = rule


def check_map_size(width: int, height: int, size: ImageSize) -> None:
    """Raise MapSizeError where a map of that width and height cannot belong to an image of that size."""
    if _fits(width, height, size.width, size.height):
        return
    image = f"{size.width} x {size.height}"
    if size.turned and _fits(width, height, size.height, size.width):
        raise MapSizeError(
            "exif_rotation",
            f"{width} x {height} pixels only fit the image as it lies in its file, but EXIF turns it to {image}: turn "
            "the map too, or remove the orientation from the image",
        )
    if width > size.width or height > size.height:
        raise MapSizeError(
            "map_too_large", f"{width} x {height} pixels are more than the image's {image}: a map may only be smaller"
        )
    raise MapSizeError(
        "aspect_ratio",
        f"{width} x {height} pixels do not have the shape of the image's {image}: the aspect ratio must be the same "
        "within one pixel of the map",
    )


def _fits(width: int, height: int, image_width: int, image_height: int) -> bool:
    """Scaled by one side, the other side is as long as the image's within one pixel of the map."""
    if width > image_width or height > image_height:
        return False
    return abs(width * image_height - height * image_width) <= max(image_width, image_height)
