"""Scene text recognition: the text in the image, as tokens, read from left to right.

Connectionist temporal classification (Graves et al. 2006): each column of a fine level says a token or none, and what
columns next to each other say alike is one token. So between two equal tokens a column must say none.
"""

# ruff: noqa: D102 — the types of `task` say what each method does.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sihlai.scheduler.v1 import job_spec_pb2
from torch import nn
from torch.nn import functional

from runner.tasks.drawing import enlarged, with_lines
from runner.tasks.names import index_reader, missing, read_names
from runner.tasks.pyramid_decoder import PyramidDecoder
from runner.tasks.task import (
    Batched,
    Decoded,
    Evaluation,
    Features,
    Head,
    Losses,
    MetricValue,
    Outputs,
    Prediction,
    Task,
    Vocabulary,
)
from runner.tasks.task import WrongAnnotation as Wrong
from runner.trainer.norm import group_norm
from runner.trainer.view import View

NONE = 0
"""What a column says that says no token; token n of the vocabulary is n + 1."""
REACH = 5
"""Columns that a convolution along them sees."""
SAYING = 0.1
"""The share of columns that say a token, before anything is learned. Were all alike, the first steps would push every
feature towards none, and some trainings never came back from there."""
EXACT_MATCH, CHARACTER_ERROR_RATE = "exact_match", "character_error_rate"


class SceneTextRecognition(Task):
    """The task."""

    name = "scene text recognition"
    metrics: Mapping[str, bool] = {EXACT_MATCH: True, CHARACTER_ERROR_RATE: False}

    def unfit_augmentations(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        return {
            "horizontal_flip": "text in a mirror is another text",
            "vertical_flip": "text that is upside down is another text",
            "crop": "text that is cut off keeps its tokens",
        }

    def vocabulary(self, metadata: Mapping[str, Any]) -> Vocabulary:
        return {"tokens": read_names(metadata, "tokens", "a token")}

    def unknown(self, vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
        """Tokens that the model has no output for."""
        return missing(other["tokens"], vocabulary["tokens"])

    def reader(self, vocabulary: Vocabulary, folder: Path) -> Callable[[Any], tuple[int, ...]]:
        """A text is the indices of its tokens."""
        index = index_reader(vocabulary["tokens"], "token", "tokens")

        def read(annotation: Any) -> tuple[int, ...]:
            if not isinstance(annotation, list):
                raise Wrong(f"a list of tokens was wanted, {annotation!r:.100} was found")
            return tuple(map(index, annotation))

        return read

    def place(self, target: tuple[int, ...], view: View) -> tuple[int, ...]:
        return target

    def batch(self, placed: Sequence[tuple[int, ...]]) -> Batched:
        """What columns say, batch x the longest text, and how long each is."""
        longest = max(1, *map(len, placed))
        rows = [[index + 1 for index in text] + [NONE] * (longest - len(text)) for text in placed]
        return {"said": torch.tensor(rows), "length": torch.tensor([len(text) for text in placed])}

    def crowded(self, vocabulary: Vocabulary, view: View) -> tuple[int, ...]:
        return tuple(index % len(vocabulary["tokens"]) for index in range(view.canvas_width))

    def head(self, specification: job_spec_pb2.Head, vocabulary: Vocabulary, out_channels: Mapping[int, int]) -> Head:
        parameters = specification.scene_text_recognition
        channels = parameters.channels
        return TextHead(
            decoder=PyramidDecoder(out_channels, parameters.level_min, channels, channels),
            channels=channels,
            tokens=vocabulary["tokens"],
            tokens_max=parameters.tokens_max,
        )


@dataclass(frozen=True, kw_only=True)
class Text(Prediction):
    """What is read: tokens, their indices, and the probability of all columns together."""

    tokens: Sequence[str]
    indices: Sequence[int]
    probability: float

    @property
    def text(self) -> str:
        """The tokens, joined."""
        return "".join(self.tokens)

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": list(self.tokens), "probability": self.probability}

    def summary(self) -> str:
        return f"{self.text!r}  {self.probability:.1%}" if self.tokens else f"no text  {self.probability:.1%}"

    def draw(self, image: Image.Image) -> Image.Image:
        return with_lines(enlarged(image), [self.summary()])


class TextHead(Head):
    """Rows of a fine level are joined by what each says it is worth; columns see their neighbours, then say a token."""

    def __init__(self, *, decoder: PyramidDecoder, channels: int, tokens: Sequence[str], tokens_max: int) -> None:
        super().__init__()
        self._tokens = tuple(tokens)
        self._tokens_max = tokens_max
        self.decoder = decoder
        self.worth = nn.Conv2d(channels, 1, 1)
        self.along = nn.Sequential(
            nn.Conv1d(channels, channels, REACH, padding=REACH // 2, bias=False),
            group_norm(channels, 1),
            nn.ReLU(inplace=True),
        )
        self.last = nn.Conv1d(channels, 1 + len(tokens), 1)
        assert self.last.bias is not None, "it has one"
        with torch.no_grad():
            self.last.bias.zero_()
            self.last.bias[NONE] = math.log(len(tokens) * (1 - SAYING) / SAYING)

    def forward(self, features: Features) -> Outputs:
        """Logits, batch x columns x (none and the tokens)."""
        found = self.decoder.finest(features)
        share = self.worth(found).softmax(dim=2)
        columns = (found * share).sum(dim=2)
        return {"logits": self.last(self.along(columns)).transpose(1, 2)}

    def loss(self, outputs: Outputs, targets: Batched) -> Losses:
        """Of each image the negative logarithm of its text's probability, a token; 0 where the columns are too few."""
        logits = outputs["logits"]
        length = targets["length"]
        columns = torch.full_like(length, logits.shape[1])
        losses = functional.ctc_loss(
            logits.log_softmax(dim=2).transpose(0, 1),
            targets["said"],
            columns,
            length,
            blank=NONE,
            reduction="none",
            zero_infinity=True,
        )
        return {"text": (losses / length.clamp(min=1)).mean()}

    def decode(self, outputs: Outputs) -> Decoded:
        """What each column says, 0 being none, and how probable it is; batch x columns."""
        best = outputs["logits"].softmax(dim=2).max(dim=2)
        return {"said": best.indices, "probability": best.values}

    def predictions(self, decoded: Decoded, views: Sequence[View]) -> Sequence[Text]:
        """The likeliest way, collapsed; never more than `tokens_max`."""
        found = []
        for said, probabilities in zip(decoded["said"].tolist(), decoded["probability"].tolist(), strict=True):
            indices = collapsed(said)[: self._tokens_max]
            tokens = tuple(self._tokens[index] for index in indices)
            found.append(Text(tokens=tokens, indices=indices, probability=math.prod(probabilities)))
        return found

    def evaluation(self) -> Evaluation:
        return _Readings()


def collapsed(said: Sequence[int]) -> tuple[int, ...]:
    """The indices of the tokens that columns say: what stands next to each other and is equal is one."""
    pairs = zip((NONE, *said), said, strict=False)
    return tuple(each - 1 for before, each in pairs if each not in (NONE, before))


def edits(found: Sequence[int], wanted: Sequence[int]) -> int:
    """The least number of tokens to put in, to take out or to change (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for count, each in enumerate(found, start=1):
        diagonal, row[0] = row[0], count
        for place, other in enumerate(wanted, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (each != other))
    return row[-1]


class _Readings:
    """How many texts are right, and how many tokens had to be changed."""

    def __init__(self) -> None:
        self._texts = self._right = self._tokens = self._edits = 0

    def add(self, prediction: Text, target: tuple[int, ...], view: View) -> None:
        wrong = edits(prediction.indices, target)
        self._texts += 1
        self._right += wrong == 0
        self._tokens += len(target)
        self._edits += wrong

    def values(self) -> list[MetricValue]:
        if not self._texts:
            return []
        values = [MetricValue(name=EXACT_MATCH, value=self._right / self._texts)]
        if self._tokens:
            values.append(MetricValue(name=CHARACTER_ERROR_RATE, value=self._edits / self._tokens))
        return values

    def text(self) -> list[str]:
        return []
