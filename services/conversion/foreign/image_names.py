"""Where a foreign dataset's images lie, and what they are called natively: all in one folder, with plain names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from services.conversion.file.header import FORMAT_BY_SUFFIX
from services.conversion.finding import Place, Report
from services.conversion.foreign.format import ForeignImage

PICTURES_PASSED_OVER = frozenset(
    {".bmp", ".webp", ".gif", ".jfif", ".jp2", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".tga", ".dng"}
)
"""Names that pictures have too, which nothing here decodes."""
_DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


def is_image(path: str) -> bool:
    """Whether a file's name is an image's."""
    return PurePosixPath(path).suffix.lower() in FORMAT_BY_SUFFIX and not PurePosixPath(path).name.startswith(".")


def is_passed_over(path: str) -> bool:
    """Whether a file's name is that of a picture which is not read."""
    return PurePosixPath(path).suffix.lower() in PICTURES_PASSED_OVER and not PurePosixPath(path).name.startswith(".")


def report_passed_over(paths: Iterable[str], report: Report) -> None:
    """A warning for every picture that is not read: with it a category may be gone, or what a list names."""
    wanted = ", ".join(FORMAT_BY_SUFFIX)
    for path in filter(is_passed_over, paths):
        suffix = PurePosixPath(path).suffix.lower()
        message = f"the file's name ends in {suffix!r}, so it is passed over: images end in {wanted}, convert it"
        report.warn("wrong_extension", message, Place(file=path, image=PurePosixPath(path).name), value=suffix)


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


def inside(path: str) -> str:
    """The path relative to the source, however it is spelled: `images\\a.png`, `./images/a.png`, `/data/images/a.png`.

    What leads out of the source begins there anew, as YOLO's own tools have it.
    """
    parts: list[str] = []
    for part in _DRIVE.sub("", path).replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def locate(names: Sequence[str], paths: Mapping[str, int], *, preferred: str = "") -> dict[str, str]:
    """The paths of files of which a document names the ends, such as `1.jpg` or `train/1.jpg`; see also `inside`.

    The folder that holds most of them is taken, the `preferred` one among equals; what is not there is left out. Of a
    name that begins at the root of somebody's machine the first folders are passed over, as far as it is sure what is
    meant; one that is written as in a URL is unquoted.
    """
    spelled = {name: inside(name) for name in names}
    by_name = _by_name([*spelled.values(), *map(unquote, spelled.values())], paths)
    found = _in_one_folder(spelled, by_name, paths, preferred)
    for name in names:
        if name not in found and (path := _found_alone(name, spelled[name], by_name)):
            found[name] = path
    return found


def nearest(name: str, paths: Iterable[str]) -> str:
    """A file that may be meant by a name that is not there: the same name elsewhere, in other case, or another kind."""
    wanted = PurePosixPath(inside(name))
    stem, name = wanted.stem.casefold(), wanted.name.casefold()
    pictures = (path for path in paths if is_image(path) or is_passed_over(path))
    close = [path for path in pictures if PurePosixPath(path).stem.casefold() == stem]
    return min(close, key=lambda path: (PurePosixPath(path).name.casefold() != name, path), default="")


def missing_image_message(name: str, paths: Iterable[str]) -> str:
    """What is said of an image that a document lists, and that is not there; hints at what may be meant."""
    found = nearest(name, paths)
    hint = f"there is {found}, mend the name, " if found else ""
    if found and is_passed_over(found):
        hint = f"there is {found}, but images end in {', '.join(FORMAT_BY_SUFFIX)}: convert it, "
    return f"the image is listed, but it is not among the files: {hint}add it, or leave it out"


def _by_name(spelled: Sequence[str], paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths of every wanted file's name."""
    wanted = {name.rsplit("/", 1)[-1] for name in spelled}
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        if name in wanted:
            found[name].append(path)
    return found


def _in_one_folder(
    spelled: Mapping[str, str], by_name: Mapping[str, Sequence[str]], paths: Mapping[str, int], preferred: str
) -> dict[str, str]:
    folders: Counter[str] = Counter()
    for name in spelled.values():
        for path in by_name.get(name.rsplit("/", 1)[-1], ()):
            if path == name or path.endswith(f"/{name}"):
                folders[path[: len(path) - len(name)]] += 1
    if not folders:
        return {}
    most = max(folders.values())
    best = min((f for f, count in folders.items() if count == most), key=lambda f: (f != preferred, len(f), f))
    return {name: best + end for name, end in spelled.items() if best + end in paths}


def _found_alone(name: str, spelled: str, by_name: Mapping[str, Sequence[str]]) -> str:
    """The one file that a name can mean where it is written as in a URL, or begins at the root of a machine."""
    rooted = name.startswith(("/", "\\")) or _DRIVE.match(name) is not None
    ends = [unquote(spelled)] if "%" in spelled else []
    if rooted:
        parts = spelled.split("/")
        ends += ["/".join(parts[begin:]) for begin in range(1, len(parts))]
    for end in ends:
        found = [path for path in by_name.get(end.rsplit("/", 1)[-1], ()) if f"/{path}".endswith(f"/{end}")]
        if len(found) == 1:
            return found[0]
    return ""
