"""Validation images out of the training dataset: a pure function of names, normalised annotations, share and seed.

Every image has a place in one order, by the hash of its name. Images with the same labels form a stratum, and of each
stratum the first images of the order are validated on, as many as its share. So two jobs of a project are validated on
nearly the same images, whatever their heads, and an image that is added moves few others to another side: at most two
of the strata, one for each of its labels where it becomes the label's first image, one for each where it becomes the
last; and one for each label that has to be mended before or after (see `_mend`). Where images are single units, that
is; an identity's images move together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from services.split.label import CATEGORY, RULES, SEVERAL, Label, LabelRule, labels_of

HASH_BYTES = 8
HASH_RANGE = 256**HASH_BYTES

Identity: TypeAlias = tuple[int, str]
"""A head's index and the identity's name."""


@dataclass(frozen=True, kw_only=True)
class HeadAnnotations:
    """What one head learns from: its task's name, and the normalised annotation by image, None for an unlabelled one.

    A task that learns from images alone learns from each image that is named here.
    """

    task: str
    annotations: Mapping[str, Any]


@dataclass(kw_only=True)
class _Unit:
    """Images that go to one side together: one image, or all images of an identity. `order` is its place."""

    order: tuple[int, str]
    images: list[str] = field(default_factory=list)
    labels: set[Label] = field(default_factory=set)
    trains: bool = False
    """Whether a head may learn from one of its images."""


def validation_names(heads: Sequence[HeadAnnotations], share: float, seed: int) -> frozenset[str]:
    """The names of the images to validate on, out of those that a head learns from.

    A stratum of n gives share x n of them, rounded up or down by its own hash: to within one each, and in all as nearly
    as if they were one. Labels that only one image has are drawn from together. Then, label by label:

    - whatever is labelled trains: every label keeps at least one training image, if there is one at all;
    - every head, and every category of a task whose images have sets of them, is validated on as well, if it has an
      image that is not the only one left to learn another label from. This may take more than the share: at most one
      image for each such label;
    - all images of an identity are on one side; identities take the place of images, and those with one image alone are
      drawn from apart, because no query finds them;
    - labelled anomalies never train: they are validated on, unless another head learns from their images.

    At least one image is validated on where there are two, and at least one trains where there is one that may.
    """
    rules = [RULES[head.task] for head in heads]
    units = _units(heads, rules, seed)
    free = [unit for unit in units if unit.trains]
    by_label: dict[Label, list[_Unit]] = defaultdict(list)
    for unit in free:  # in order, so that each label's are in order
        for label in unit.labels:
            by_label[label].append(unit)
    wanted = [label for label in by_label if label.kind != CATEGORY or rules[label.head].on_both_sides]
    taken = _drawn(free, share, seed)
    taken |= {by_label[label][0].order for label in wanted}
    taken -= {found[-1].order for found in by_label.values()}
    _mend(taken, by_label, sorted(wanted, key=lambda label: (_hash(seed, "label", *map(str, label)), label)))
    if not taken and len(units) == len(free) > 1:
        taken.add(free[0].order)
    return frozenset(name for unit in units if unit.order in taken or not unit.trains for name in unit.images)


def learned_names(heads: Sequence[HeadAnnotations]) -> frozenset[str]:
    """The names of the images that a head learns from: what is not validated on of them is trained on."""
    return frozenset(
        name
        for head in heads
        for name, annotation in head.annotations.items()
        if annotation is not None or RULES[head.task].images_alone
    )


def _units(heads: Sequence[HeadAnnotations], rules: Sequence[LabelRule], seed: int) -> list[_Unit]:
    """All units in their order."""
    labels: dict[str, set[Label]] = defaultdict(set)
    identities: dict[str, list[Identity]] = defaultdict(list)
    trains: set[str] = set()
    for index, (head, rule) in enumerate(zip(heads, rules, strict=True)):
        for name, annotation in head.annotations.items():
            if annotation is None and not rule.images_alone:
                continue
            labels[name].update(labels_of(index, rule, annotation))
            if rule.identities:
                identities[name].append((index, annotation))
            if not rule.never_trains(annotation):
                trains.add(name)
    sizes = Counter(identity for found in identities.values() for identity in found)
    first_of = _joined(identities.values())
    units: dict[str | Identity, _Unit] = {}
    for name, found in labels.items():
        own = identities.get(name)
        key: str | Identity = first_of[own[0]] if own else name
        unit = units.setdefault(key, _Unit(order=_place(seed, key)))
        unit.images.append(name)
        unit.labels |= found
        unit.labels |= {Label(head, SEVERAL) for head, identity in own or () if sizes[head, identity] > 1}
        unit.trains |= name in trains
    return sorted(units.values(), key=lambda unit: unit.order)


def _joined(groups: Iterable[Sequence[Identity]]) -> dict[Identity, Identity]:
    """The first identity of all that have to stay together, because an image has both (of two heads)."""
    first_of: dict[Identity, Identity] = {}

    def first(identity: Identity) -> Identity:
        while (above := first_of.setdefault(identity, identity)) != identity:
            identity = above
        return identity

    for group in groups:
        roots = sorted({first(identity) for identity in group})
        first_of.update(dict.fromkeys(roots, roots[0]))
    return {identity: first(identity) for identity in list(first_of)}


def _drawn(units: Sequence[_Unit], share: float, seed: int) -> set[tuple[int, str]]:
    """Each stratum's share. Strata of one unit are drawn from together, or none of them would give anything."""
    strata: dict[frozenset[Label], list[_Unit]] = defaultdict(list)
    for unit in units:
        strata[frozenset(unit.labels)].append(unit)
    drawn: set[tuple[int, str]] = set()
    alone: list[_Unit] = []
    for labels, found in strata.items():
        if len(found) == 1:
            alone += found
        else:
            words = [word for label in sorted(labels) for word in map(str, label)]
            drawn.update(unit.order for unit in found[: _count(len(found), share, _hash(seed, "stratum", *words))])
    alone.sort(key=lambda unit: unit.order)
    return drawn | {unit.order for unit in alone[: _count(len(alone), share, _hash(seed, "alone"))]}


def _count(units: int, share: float, chance: int) -> int:
    """The share of so many, rounded up or down by chance."""
    return int(Fraction(share) * units + Fraction(chance, HASH_RANGE))


def _mend(taken: set[tuple[int, str]], by_label: Mapping[Label, Sequence[_Unit]], wanted: Iterable[Label]) -> None:
    """Take a unit for each label that is not validated on, the first that leaves all its labels one to learn from.

    It comes to that where a label's first unit is another label's last. Each such label takes one unit, or none.
    """
    left = {label: sum(unit.order not in taken for unit in found) for label, found in by_label.items()}
    for label in wanted:
        if left[label] < len(by_label[label]):
            continue
        movable = next((unit for unit in by_label[label] if all(left[each] > 1 for each in unit.labels)), None)
        if movable is not None:
            taken.add(movable.order)
            left.update({each: left[each] - 1 for each in movable.labels})


def _place(seed: int, key: str | Identity) -> tuple[int, str]:
    """A unit's place in the order; the name decides between equal hashes."""
    if isinstance(key, str):
        return _hash(seed, "image", key), key
    return _hash(seed, "identity", str(key[0]), key[1]), f"{key[0]}/{key[1]}"


def _hash(seed: int, kind: str, *words: str) -> int:
    text = "\0".join((str(seed), kind, *words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest(), "little")
