"""What CLIP is asked: states × templates, for "normal" and for "abnormal".

The family of ClipSAM (WinCLIP, APRIL-GAN) describes a category in many sentences and averages their embeddings. The
paper shows four states and two templates and not its lists; the lists here are this package's own.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

OBJECT = "object"
"""The category to ask for when the image's own is not known or not to matter."""

NORMAL_STATES = (
    "{}",
    "a flawless {}",
    "a perfect {}",
    "an undamaged {}",
    "an intact {}",
    "a {} without defect",
    "a {} without damage",
)
ABNORMAL_STATES = (
    "a damaged {}",
    "a broken {}",
    "a defective {}",
    "a {} with a defect",
    "a {} with a flaw",
    "a {} with damage",
)
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a cropped photo of {}",
    "a close-up photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a blurry photo of {}",
    "a black and white photo of {}",
    "a photo of {} for visual inspection",
)


@dataclass(frozen=True)
class PromptBank:
    """States with a slot ``{}`` for the category, and templates with a slot for the state.

    Raises:
        ValueError: an empty list, or a sentence without exactly one slot.
    """

    normal_states: tuple[str, ...] = NORMAL_STATES
    abnormal_states: tuple[str, ...] = ABNORMAL_STATES
    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        """Check the sentences."""
        for name, sentences in asdict(self).items():
            if not sentences:
                raise ValueError(f"{name} is empty; allowed: one sentence or more")
            for sentence in sentences:
                if not isinstance(sentence, str) or sentence.count("{}") != 1:
                    raise ValueError(f"{name} has {sentence!r}; allowed: a text with {{}} once")

    @classmethod
    def from_yaml(cls, path: Path | str) -> Self:
        """Return the bank of a YAML file with any of the keys normal_states, abnormal_states and templates.

        Raises:
            ValueError: the file is no such mapping.
            OSError: it cannot be read.
        """
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is not YAML: {str(error).splitlines()[0]}") from error
        known = {field.name for field in fields(cls)}
        if (
            not isinstance(given, dict)
            or not given.keys() <= known
            or not all(isinstance(v, list) and all(isinstance(text, str) for text in v) for v in given.values())
        ):
            raise ValueError(
                f"{str(path)!r} is no prompt file; allowed: lists of texts under {', '.join(sorted(known))}"
            )
        try:
            return cls(**{name: tuple(sentences) for name, sentences in given.items()})
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from error

    def prompts(self, category: str) -> tuple[list[str], list[str]]:
        """Return all sentences that call a category normal, and all that call it abnormal.

        Args:
            category: such as "metal_nut"; underscores become spaces.

        Raises:
            ValueError: an empty category.
        """
        name = " ".join(category.replace("_", " ").split())
        if not name:
            raise ValueError(f"category={category!r} is empty; allowed: a word such as {OBJECT!r}")
        normal, abnormal = (
            [template.replace("{}", state.replace("{}", name)) for state in states for template in self.templates]
            for states in (self.normal_states, self.abnormal_states)
        )
        return normal, abnormal

    @property
    def hash(self) -> str:
        """The sha256 of the sentences: a checkpoint is only valid with those it was trained with."""
        content: dict[str, Any] = asdict(self)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def group_average(embeddings: Tensor) -> Tensor:
    """Return the direction of a group of sentences: normalise each, average, normalise.

    Without the first step long embeddings would count more.

    Args:
        embeddings: ``(N, C_t)``.

    Returns:
        ``(C_t,)`` of length 1.
    """
    mean = torch.nn.functional.normalize(embeddings, dim=-1).mean(0)
    return torch.nn.functional.normalize(mean, dim=-1)
