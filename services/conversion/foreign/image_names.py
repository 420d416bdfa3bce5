"""Where a foreign dataset's images lie, and what they are called natively: all in one folder, with plain names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from services.conversion.foreign.foreign_format import ForeignImage
from services.conversion.header import FORMAT_BY_SUFFIX


def is_image(path: str) -> bool:
    """Whether a file's name is an image's."""
    return PurePosixPath(path).suffix.lower() in FORMAT_BY_SUFFIX and not PurePosixPath(path).name.startswith(".")


def native_images(paths: Iterable[str]) -> tuple[ForeignImage, ...]:
    """Images with their native names, in the order of these.

    Where all lie in one folder they keep their names. Otherwise each takes as many of its folders into its name as it
    needs to be unlike the others: `cat/1.png` and `dog/1.png` become `cat__1.png` and `dog__1.png`.
    """
    parts = {path: PurePosixPath(path).parts for path in dict.fromkeys(paths)}
    depth = 1
    names = {path: each[-1] for path, each in parts.items()}
    while len(set(names.values())) < len(names) and depth < max(map(len, parts.values())):
        depth += 1
        names = {path: "__".join(each[-depth:]) for path, each in parts.items()}
    taken = Counter(names.values())
    if len(taken) < len(names):  # a__b.png beside a/b.png
        names = {path: name if taken[name] == 1 else path.replace("/", "__-__") for path, name in names.items()}
    images = [ForeignImage(path=path, name=name) for path, name in names.items()]
    return tuple(sorted(images, key=lambda image: image.name))


def common_folder(images: Sequence[ForeignImage]) -> str | None:
    """The one folder in which all images lie under their native names; None where there is none. Empty is the root."""
    folders = {image.path.removesuffix(image.name) for image in images}
    if len(folders) != 1 or any(not image.path.endswith(image.name) for image in images):
        return None
    return folders.pop().rstrip("/")


def images_beside(images: Sequence[ForeignImage], paths: Iterable[str]) -> tuple[ForeignImage, ...]:
    """Images in the common folder that do not belong to the dataset, by name."""
    folder = common_folder(images)
    if folder is None:
        return ()
    own = {image.path for image in images}
    prefix = f"{folder}/" if folder else ""
    found = (path for path in paths if is_image(path) and path.rpartition("/")[0] == folder and path not in own)
    return tuple(ForeignImage(path=path, name=path.removeprefix(prefix)) for path in sorted(found))


def locate(names: Sequence[str], paths: Mapping[str, int], *, preferred: str = "") -> dict[str, str]:
    """The paths of files of which a document names the ends, such as `1.jpg` or `train/1.jpg`.

    The folder that holds most of them is taken, the `preferred` one among equals; what is not there is left out.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    wanted = {PurePosixPath(name).name for name in names}
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        if name in wanted:
            by_name[name].append(path)
    folders: Counter[str] = Counter()
    for name in names:
        for path in by_name.get(PurePosixPath(name).name, ()):
            if path == name or path.endswith(f"/{name}"):
                folders[path[: len(path) - len(name)]] += 1
    if not folders:
        return {}
    most = max(folders.values())
    best = min((f for f, count in folders.items() if count == most), key=lambda f: (f != preferred, len(f), f))
    return {name: best + name for name in names if best + name in paths}
