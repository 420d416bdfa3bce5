"""Validation images out of the training dataset: a pure function of image names, categories, share and seed.

Two jobs of a project are validated on the same images, and images that are added later move as few others as possible
from one side to the other.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction

HASH_BYTES = 8
HASH_RANGE = 256**HASH_BYTES


def validation_names(strata: Mapping[str, str], share: float, seed: int) -> frozenset[str]:
    """The names, out of the keys of `strata`, that are validated on; the values say what keeps its share.

    A stratum of n images gives share x n of them, rounded up or down by the hash of its own name: to within one image
    each, and in all as nearly as if they were one. In each it is the images with the lowest hashes. The last image of a
    stratum always trains. At least one image is taken where there are two.
    """
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for name, stratum in strata.items():
        by_stratum[stratum].append(name)
    taken: set[str] = set()
    for stratum, names in by_stratum.items():
        wanted = int(Fraction(share) * len(names) + Fraction(_hash(seed, "stratum", stratum), HASH_RANGE))
        names.sort(key=lambda name: (_hash(seed, "image", name), name))
        taken.update(names[: min(wanted, len(names) - 1)])
    if not taken and len(strata) > 1:
        taken.add(min(strata, key=lambda name: (_hash(seed, "image", name), name)))
    return frozenset(taken)


def _hash(seed: int, kind: str, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{kind}\0{name}".encode(), digest_size=HASH_BYTES).digest()
    return int.from_bytes(digest, "little")
