"""Every long command of every package, as small as it can be, and what it reads.

What is drawn or embedded is used where it is quick; else a stand-in of the same classes takes its place, by ``patches``
in the process that runs the command. The functions here run in that process, too.
"""

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Command:
    """A command line, and what is put in the place of what is too slow.

    Args:
        line: package, command and options; ``{root}`` is the folder of the inputs, ``{train-demo}`` the run folder of
            that command of the same package.
        patches: "module.name" → a value, or "tiny:NAME" for something from here.
        prepare: "tiny:NAME" of what is called once, in the process that all runs of the command are forked from.
    """

    line: str
    patches: dict[str, Any] = field(default_factory=dict)
    prepare: str | None = None

    @property
    def package(self):
        return self.line.split()[0]

    @property
    def name(self):
        return self.line.split()[1]

    def __str__(self):
        return f"{self.package} {self.name}"


CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
TINY_DIT = {
    "delta_dit.commands.demo.load_sampler": "tiny:drawn_sampler",
    "delta_dit.commands.exact_pictures.shipped_plan": "tiny:drawn_plan",
    "delta_dit.commands.exact_pictures.EXACT_STEPS": 8,
}
JUDGE = {"delta_dit.embedded.judge.SAVE_EVERY": 2, "delta_dit.embedded.judge.JUDGED": 20}
TOWERS = {
    "clipsam.embedded.dinov2.build_clip": "tiny:built_clip",
    "clipsam.embedded.dinov2.dinov2_vits14": "tiny:built_dinov2",
    "clipsam.embedded.sam_recipe.build_clip": "tiny:built_clip",
    "clipsam.embedded.text_recipe.build_clip": "tiny:built_clip",
}
SMALL_TOWER = TOWERS | {
    "clipsam.embedded.dinov2.IMAGE_SIZE": 56,
    "clipsam.embedded.sam_recipe.frozen_backbone": "tiny:small_tower",
    "clipsam.embedded.text_recipe.frozen_backbone": "tiny:small_tower",
    "clipsam.embedded.text_recipe.PromptBank": "tiny:few_prompts",
    "clipsam.embedded.sam_recipe.CHECKED": 1,
}
BUILT = "tiny:build_towers"
SMALL_NETWORK = {"space": "nasbench201", "channels": 4, "cells": 1}
RECIPE = "--images 16 --val-images 8 --batch-size 6 --steps 6 --save-every 2"
PICTURES = "{root}/0.png {root}/1.png {root}/2.png {root}/3.png {root}/4.png"
MAPS = "{root}/0.npy {root}/1.npy {root}/2.npy {root}/3.npy {root}/4.npy"
TASK = "--model test_vit --weights {root}/vit.safetensors --image-size 32 --data {root}/classes --batch-size 6"
FIT = f"{TASK} --epochs 2 --save-every 2 --learning-rate 1e-3"
SHORT = "--top-k 1 --select-epochs 1 --select-repeats 1"
SPACE = "--channels 4 --cells 1 --samples 100 --epochs 4"

COMMANDS = [
    Command("delta-dit train-demo --steps 6 --blocks 2 --heads 1 --batch-size 6 --save-every 2"),
    Command("delta-dit train-demo-lcm --teacher {train-demo}/pipeline --steps 4 --batch-size 6 --save-every 2"),
    Command("delta-dit train-judge --steps 6 --batch-size 2", JUDGE),
    Command("delta-dit generate --model {train-demo}/pipeline --count 7 --batch-size 2 --steps 3 --speedup 1.2"),
    Command("delta-dit calibrate --model {train-demo}/pipeline --steps 3 --samples 3 --batch-size 2"),
    Command(
        "delta-dit plan --calibration {calibrate} --speedup 1.3 --samples 3 --batch-size 2 --evaluations 4",
    ),
    Command("delta-dit analyze --model {train-demo}/pipeline --steps 3 --samples 3 --batch-size 2 --ranges 2"),
    Command("delta-dit demo --steps 4 --speedup 1.3 --samples 3 --batch-size 2 --repeats 1", TINY_DIT),
    Command(f"clipsam train {RECIPE} --hidden 8 --image-size 56 --prompts {{root}}/prompts.yaml", TOWERS, BUILT),
    Command(f"clipsam train-text {RECIPE}", SMALL_TOWER, BUILT),
    Command(f"clipsam train-sam {RECIPE} --steps 2 --save-every 1", SMALL_TOWER, BUILT),
    Command(
        "clipsam eval --checkpoint {train}/best --sam none --stages clip umci --samples 7 --references 2",
        SMALL_TOWER,
        BUILT,
    ),
    Command(f"clipsam segment {PICTURES} --checkpoint {{train}}/best --batch-size 1", SMALL_TOWER, BUILT),
    Command(f"clipsam refine {PICTURES} --maps {MAPS}", SMALL_TOWER, BUILT),
    Command(f"partial-finetune train {FIT} --strategy attn"),
    Command(f"partial-finetune select {FIT} {SHORT}"),
    Command(
        f"partial-finetune sweep {FIT} --strategies full attn --learning-rates 1e-3 --seeds 1 --limit 5"
        " --corruptions contrast"
    ),
    Command("partial-finetune soup {train} --kind wise-ft --weights {root}/vit.safetensors"),
    Command(
        "partial-finetune eval {train} --weights {root}/vit.safetensors --corruptions contrast --severities 1 5"
        " --batch-size 2"
    ),
    Command(
        "partial-finetune demo --samples 16 --epochs 1",
        {
            "partial_finetune.commands.demo.recipe_of": "tiny:short_recipe",
            "partial_finetune.commands.demo.scratch": "tiny:same_task",
        },
    ),
    Command("partial-finetune angles {train} --weights {root}/vit.safetensors"),
    Command(f"bdp-nas search {SPACE}"),
    Command(f"bdp-nas retrain {CELL} {SPACE}"),
    Command(
        "bdp-nas ablate --searchers darts --variants none bdp --seeds 1 --samples 100 --epochs 3 --retrain-epochs 1"
    ),
    Command(
        "bdp-nas demo --data digits --samples 100 --epochs 3",
        {"bdp_nas.commands.demo.OF_ALL": SMALL_NETWORK, "bdp_nas.commands.demo.RETRAIN_EPOCHS": 1},
    ),
]


def make_inputs(root: str) -> None:
    """Draw the pictures, maps, classes and weights that the commands read."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder, random = Path(root), np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", np.pad(np.full((20, 20), 0.9, np.float32), ((10, 18), (20, 24))))
    for number, name in enumerate(("dark", "grey", "light")):
        (folder / "classes" / name).mkdir(parents=True)
        for index in range(7):
            pixels = random.integers(60 * number, 60 * number + 130, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "classes" / name / f"{index}.png")
    (folder / "prompts.yaml").write_text(
        'normal_states: ["{}"]\nabnormal_states: ["damaged {}"]\ntemplates: ["a photo of a {}."]\n'
    )
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), folder / "vit.safetensors")


def drawn_plan(*_, **__):
    """Return a plan for that model."""
    from delta_dit import DeltaPlan
    from delta_dit.delta_plan import Reuse

    return DeltaPlan.of(2, [None, None, Reuse(0, 2), None])


def drawn_sampler(name: str, **options):
    """Return the embedded model's sampler around a model of two blocks with random weights."""
    import torch

    from delta_dit.commands.models import load_sampler, open_gates
    from delta_dit.embedded.dit import build_dit

    sampler = load_sampler(name, **options)
    torch.manual_seed(0)
    model = build_dit(blocks=2, heads=1)
    open_gates(model)
    sampler.pipe.register_modules(transformer=model)
    return sampler


@cache
def build_towers() -> dict[str, Any]:
    """Return the embedded CLIP, whose text tower is random, and DINOv2: 22 million weights are drawn for each."""
    import torch

    from clipsam.embedded import dinov2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"clip": dinov2.build_clip(), "dinov2": dinov2.dinov2_vits14(56)}


def built_clip():
    """Return the CLIP itself, once: a command runs in a process of its own."""
    return build_towers().pop("clip")


def built_dinov2(image_size):
    assert image_size == 56
    return build_towers().pop("dinov2")


def small_tower(model):
    """Return the embedded CLIP as one that sees 4×4 patches."""
    from clipsam.embedded.dinov2 import frozen_backbone

    return frozen_backbone(model, 56)


def few_prompts():
    """Return sentences of which there is one for each state."""
    from clipsam.prompt_bank import PromptBank

    return PromptBank(normal_states=("{}",), abnormal_states=("damaged {}",), templates=("a photo of a {}.",))


def short_recipe(config):
    """Return the demo's recipe for a tiny network on the drawn classes."""
    from partial_finetune.commands.options import SelectionConfig

    root = Path(os.environ["TINY_ROOT"])
    options = {"model": "test_vit", "weights": root / "vit.safetensors", "image_size": 32}
    options |= {"data": str(root / "classes"), "batch_size": 6, "epochs": 1}
    options |= {"select_epochs": 1, "top_k": 1, "direction": "largest"}
    return SelectionConfig(output_dir=config.output_dir, seed=config.seed, cpu=True, **options)


def same_task(task, seed):
    """Return the task itself, for DINOv2 without its weights is not tiny."""
    return task


def count_torn(folder):
    """Return how many checkpoints below a folder cannot be read, as an exit code."""
    from frugal_shared.checkpoint import load_checkpoint
    from frugal_shared.errors import RunError

    torn = 0
    for path in Path(folder).rglob("checkpoints/step-*"):
        try:
            load_checkpoint(path)
        except RunError:
            torn += 1
    return torn
