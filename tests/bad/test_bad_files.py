"""Checkpoints, plans, tables and weights that are torn, changed, foreign or hostile: one line, and nothing is run."""

import copy
import json
import shutil
import zipfile
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from damage import DEEP, HTML, broken_json, changed_json, damaged, foreign, put, torch_file
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import save_file

from bdp_nas.commands.cli import main as bdp_nas_main
from bdp_nas.spaces.nasbench201 import OPERATIONS as CELL_OPERATIONS
from bdp_nas.spaces.nasbench201 import genotype_to_columns, index_to_genotype
from bdp_nas.table import Table
from clipsam.commands import models as clipsam_models
from clipsam.embedded import dinov2
from clipsam.embedded.dinov2 import HEADS, asset, embedded_backbone, embedded_segmenter
from delta_dit.commands import generate, models
from delta_dit.delta_plan import Reuse
from delta_dit.embedded.pixel import PixelDiTPipeline
from delta_dit.planning.calibration import Calibration
from delta_dit.planning.convergence import Convergence
from delta_dit.schedules import generic
from frugal_shared.checkpoint import latest_checkpoint, save_checkpoint, write_json
from frugal_shared.errors import RunError
from frugal_shared.report import Figure, Report
from frugal_shared.report import main as join
from partial_finetune.deltas import base_hashes, save_delta

BITS = ("bit", "last byte")  # where there is no hash, and another value is as good as the first


# --- delta-dit ---


@pytest.fixture
def cached_models(monkeypatch):
    """Load every model once: what is spoilt are other files."""
    load = cache(models.load_sampler)
    monkeypatch.setattr(generate, "load_sampler", lambda name, **rest: copy.deepcopy(load(name, **rest)))


def test_plans(desk, cached_models, tmp_path):
    plan = tmp_path / "plan.json"
    generic(4, 12, 1.6).save(plan)
    argv = ("generate", "--model", "demo-lcm", "--count", 1, "--cpu", "--plan", plan, "--output-dir", tmp_path / "out")
    desk.spoil(plan, "delta-dit", *argv, works=(*BITS, "without mac_speedup", "mac_speedup", "provenance"))


def test_calibrations(desk, tmp_path):
    folder, random = tmp_path / "calibration", np.random.default_rng(0)
    folder.mkdir()
    sketches = random.standard_normal((1, 6, 5, 2, 8)).astype(np.float32)
    probes = (Reuse(0, 2), Reuse(0, 4), Reuse(1, 4), Reuse(2, 4, 1))
    harm = np.full((6, 4), 1e-3)
    harm[0], harm[1, 3] = np.nan, np.nan
    levels = tuple(np.linspace(1, 0, 6).tolist())
    Calibration(sketches, harm, probes, levels, 1.0, 0.9, Convergence(1.0, 1.0), None, {}).save(
        folder / "calibration.safetensors"
    )
    target = tmp_path / "plan.json"
    argv = ("plan", "--calibration", folder, "--no-refine", "--speedup", 1.3, "--json", target)
    assert desk.ask("delta-dit", *argv).code == 0
    desk.spoil(folder / "calibration.safetensors", "delta-dit", *argv, named=folder)


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline as ``train-demo`` saves it, of two blocks."""
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    pixels = {"in_channels": 3, "out_channels": 3, "num_embeds_ada_norm": 4, "norm_num_groups": 1}
    folder = tmp_path / "pipeline"
    pipe = PixelDiTPipeline(DiTTransformer2DModel(**shape, **pixels).half(), DPMSolverMultistepScheduler())
    pipe.save_pretrained(folder, variant="fp16")
    return folder


def test_pipelines(desk, pipeline, tmp_path):
    argv = ("generate", "--model", pipeline, "--count", 1, "--steps", 2, "--speedup", 1, "--cpu")
    argv = (*argv, "--output-dir", tmp_path / "out")
    weights = pipeline / "transformer/diffusion_pytorch_model.fp16.safetensors"
    desk.spoil(weights, "delta-dit", *argv, named=pipeline, works=BITS)
    for name in ("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"):
        desk.spoil(pipeline / name, "delta-dit", *argv, named="pipeline", works=(*BITS, "empty object"), fields=0)
    # weights as a pickle beside the config, and code that the folder itself brings
    weights.unlink()
    for name, content in foreign(desk.marker).items():
        put(pipeline / "transformer/diffusion_pytorch_model.fp16.bin", content)
        desk.refused(f"diffusion_pytorch_model.bin: {name}", "delta-dit", *argv, named=pipeline)
    (pipeline / "evil.py").write_text(f"open({str(desk.marker)!r}, 'w')\nclass Evil: ...\n")
    for index in ({"_class_name": ["evil", "Evil"]}, {"_class_name": "DiTPipeline", "scheduler": ["evil", "Evil"]}):
        (pipeline / "model_index.json").write_text(json.dumps(index))
        desk.refused(f"model_index.json: {index}", "delta-dit", *argv, named=pipeline)


def test_teachers(desk, pipeline, tmp_path):
    argv = ("train-demo-lcm", "--teacher", pipeline, "--cpu", "--output-dir", tmp_path / "out")
    weights = pipeline / "transformer/diffusion_pytorch_model.fp16.safetensors"
    for case, content in {"0 bytes": b"", "torn": weights.read_bytes()[:-1], "HTML": HTML, "a folder": None}.items():
        put(weights, content)
        desk.refused(f"teacher: {case}", "delta-dit", *argv, named=pipeline)


def test_prompts_that_are_no_text(desk, cached_models, pipeline, tmp_path, monkeypatch):
    sampler = models.Sampler("x", None, ["a cat"], "prompt")
    monkeypatch.setattr(generate, "load_sampler", lambda *_, **__: sampler)
    prompts = tmp_path / "prompts.txt"
    argv = ("generate", "--prompts", prompts, "--cpu", "--output-dir", tmp_path / "out")
    for case, content in {"0 bytes": b"", "spaces": b" \n\n", "noise": bytes(range(256)), "a folder": None}.items():
        put(prompts, content)
        desk.refused(f"prompts: {case}", "delta-dit", *argv, named=prompts)


# --- clipsam ---


@pytest.fixture
def cached_towers(monkeypatch):
    """Build the embedded CLIP and SAM once."""
    monkeypatch.setattr(dinov2, "embedded_backbone", cache(embedded_backbone))
    monkeypatch.setattr(clipsam_models, "embedded_segmenter", cache(embedded_segmenter))


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(path)
    return path


def test_heads(desk, cached_towers, photograph, tmp_path):
    folder = tmp_path / "heads"
    shutil.copytree(asset(HEADS), folder)
    argv = ("segment", photograph, "--checkpoint", folder, "--sam", "none", "--cpu", "--output-dir", tmp_path / "out")
    desk.spoil(folder / "umci.safetensors", "clipsam", *argv)
    harmless = (*BITS, "provenance", "mmr", "without mmr", "backbone", "without backbone")
    desk.spoil(folder / "config.json", "clipsam", *argv, named=folder, works=harmless, fields=12)


def test_published_weights(desk, photograph, tmp_path):
    weights, rough = tmp_path / "sam.pth", tmp_path / "map.npy"
    np.save(rough, np.zeros((40, 52), np.float32))
    weights.write_bytes(torch_file({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 8)}))
    argv = ("refine", photograph, "--maps", rough, "--sam", weights, "--cpu")
    desk.spoil(weights, "clipsam", *argv, "--output-dir", tmp_path / "out")
    argv = ("segment", photograph, "--checkpoint", "none", "--sam", "none", "--clip", "ViT-S-32-alt", "--cpu")
    for suffix in (".pt", ".safetensors", ".npz"):
        for case, content in foreign(desk.marker).items():
            clip = tmp_path / f"clip{suffix}"
            clip.write_bytes(content)
            given = (*argv, "--clip-weights", clip, "--output-dir", tmp_path / "out")
            desk.refused(f"{clip.name}: {case}", "clipsam", *given, named=clip)


def test_prompts(desk, cached_towers, photograph, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    argv = ("segment", photograph, "--prompts", prompts, "--checkpoint", "none", "--sam", "none", "--cpu")
    argv = (*argv, "--output-dir", tmp_path / "out")
    prompts.write_text("normal_states: ['a {}', 'a good {}']\nabnormal_states: ['a bad {}']\ntemplates: ['{} here']\n")
    desk.spoil(prompts, "clipsam", *argv, works=(*BITS, "torn"))
    touch = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path"
    laughs = "a: &a [ha, ha]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijk")
    )
    cases = {
        "a Python tag": f"normal_states: {touch} ['{desk.marker}']]",
        "another Python tag": f"!!python/object/apply:os.system ['touch {desk.marker}']",
        "billion laughs": laughs,
        "billion laughs in a list": laughs + "normal_states: *k",
        "deep": "[" * DEEP,
        "numbers": "templates: [1, 2]",
        "no slot": "templates: ['nothing']",
        "an impossible date": "templates: [2001-99-99]",
        "two documents": "templates: ['{}']\n---\ntemplates: ['{}']",
        "a key twice, of another type": "templates: ['{}']\ntemplates: 1",
        "a list as a key": "[1]: 2",
    }
    for case, text in cases.items():
        prompts.write_text(text)
        desk.refused(case, "clipsam", *argv, named=prompts.name)
    for case, text in {"braces": "templates: ['{} {0} {x.__class__} }{ {']"}.items():
        prompts.write_text(text)
        assert desk.ask("clipsam", *argv).code == 0, case


def test_maps(desk, cached_towers, photograph, tmp_path):
    rough = tmp_path / "map.npy"
    np.save(rough, np.zeros((40, 52), np.float32))  # nothing to ask SAM for
    argv = ("refine", photograph, "--maps", rough, "--cpu", "--output-dir", tmp_path / "out")
    desk.spoil(rough, "clipsam", *argv, works=BITS, batch=True)


def test_data_sets_of_tables(desk, cached_towers, photograph, tmp_path):
    root = tmp_path / "data"
    (root / "split_csv").mkdir(parents=True)
    listed, table = root / "meta.json", root / "split_csv" / "1cls.csv"
    argv = ("eval", "--data", root, "--checkpoint", "none", "--sam", "none", "--cpu", "--output-dir", tmp_path / "out")
    table.write_text(f"object,split,label,image,mask\nthing,test,normal,{photograph},\n")
    desk.spoil(table, "clipsam", *argv, named=root, works=(*BITS, "torn"), batch=True)
    table.unlink()
    item = {"img_path": str(photograph), "mask_path": "", "specie_name": "good", "anomaly": 0}
    listed.write_text(json.dumps({"train": {}, "test": {"thing": [item]}}))
    desk.spoil(listed, "clipsam", *argv, named=root, works=(*BITS, "train", "without train"), batch=True)
    for case, content in changed_json(item):
        listed.write_text(json.dumps({"test": {"thing": [json.loads(content)]}}))
        harmless = case.startswith(("anomaly", "without mask", "mask_path", "without spec", "specie_name"))
        desk.refused(f"meta.json: {case}", "clipsam", *argv, named=root, works=harmless, batch=True)


def test_features(desk, cached_towers, tmp_path):
    folder = tmp_path / "features"
    argv = ("train", "--features", folder, "--data", "procedural", "--images", 4, "--val-images", 2, "--steps", 1)
    argv = (*argv, "--batch-size", 2, "--hidden", 8, "--cpu", "--output-dir", tmp_path / "out")
    assert desk.ask("clipsam", *argv).code == 0
    shutil.rmtree(tmp_path / "out")
    for name in ("train.json", "train-tokens.npy", "train-masks.npy"):
        whole = (folder / name).read_bytes()
        objects = foreign(desk.marker)["array of objects"]
        for case, content in {
            "0 bytes": b"",
            "torn": whole[:-9],
            "HTML": HTML,
            "objects": objects,
            "a folder": None,
        }.items():
            put(folder / name, content)
            desk.refused(f"{name}: {case}", "clipsam", *argv, named=folder)
        put(folder / name, whole)


# --- partial-finetune ---


@pytest.fixture
def tuned(tmp_path):
    """A base's weights, and a delta to it."""
    torch.manual_seed(0)
    base, weights, folder = timm.create_model("test_vit"), tmp_path / "base.safetensors", tmp_path / "delta"
    save_file(base.state_dict(), weights)
    base.reset_classifier(2)
    hashes = base_hashes(base)
    head = {name: value.clone() for name, value in base.state_dict().items() if name.startswith("head.")}
    torch.nn.init.ones_(base.blocks[0].attn.proj.weight)
    info = {"model": "test_vit", "weights": str(weights), "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3}
    save_delta(folder, base, hashes, selection=None, info=info | {"image_size": None}, initial_head=head)
    return weights, folder


def test_deltas(desk, tuned, tmp_path):
    merged = tmp_path / "merged.safetensors"
    argv = ("merge", tuned[1], "--output", merged)
    assert desk.ask("partial-finetune", *argv).code == 0
    merged.unlink()
    desk.spoil(tuned[1] / "delta.safetensors", "partial-finetune", *argv, named=tuned[1])
    assert not merged.exists()
    blank = ("last byte", "bit 0 of its tail", "bit 1 of its tail")  # the line break behind the JSON
    desk.spoil(tuned[1] / "delta.json", "partial-finetune", *argv, named=tuned[1], works=blank)


def test_base_weights(desk, tuned, tmp_path):
    weights, folder = tuned
    argv = ("merge", folder, "--output", tmp_path / "merged.safetensors", "--weights")
    desk.spoil(weights, "partial-finetune", *argv, weights, named="base")
    state = timm.create_model("test_vit").state_dict()
    for suffix in (".pth", ".bin", ".npz"):
        path = tmp_path / f"base{suffix}"
        for case, content in (damaged(torch_file(state)) | foreign(desk.marker)).items():
            path.write_bytes(content)
            desk.refused(f"{path.name}: {case}", "partial-finetune", *argv, path, named="base")
    assert not (tmp_path / "merged.safetensors").exists()


def test_selections_and_finished_fits(desk, tuned, tmp_path):
    data, folder, random = tmp_path / "data", tmp_path / "run", np.random.default_rng(0)
    for name in "ab":
        (data / name).mkdir(parents=True)
        for index in range(6):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data / name / f"{index}.png")
    argv = ("train", "--model", "test_vit", "--weights", tuned[0], "--data", data, "--epochs", 1, "--strategy", "angle")
    argv = (*argv, "--image-size", 32, "--no-fit-head", "--select-repeats", 1, "--direction", "largest", "--cpu")
    argv = (*argv, "--batch-size", 4, "--output-dir", folder)
    assert desk.ask("partial-finetune", *argv).code == 0
    kept = tmp_path / "kept"
    folder.rename(kept)
    for name in ("selection/selection.json", "fit.json", "manifest.json"):
        whole = (kept / name).read_bytes()
        bad = foreign(desk.marker)["pickle"]
        for case, content in {"0 bytes": b"", "torn": whole[:-9], "pickle": bad, "deep": b"[" * DEEP}.items():
            shutil.copytree(kept, folder)
            put(folder / name, content)
            answer = desk.ask("partial-finetune", *argv, "--resume")
            desk.judge(f"{name}: {case}", answer, "partial-finetune", named=folder)
            shutil.rmtree(folder)


# --- bdp-nas ---

NETWORK = ("--channels", 4, "--cells", 1, "--epochs", 1, "--samples", 60, "--cpu")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Run folders of a search and of a retraining."""
    root = tmp_path_factory.mktemp("searched")
    assert bdp_nas_main(["search", *map(str, NETWORK), "--output-dir", str(root / "search")]) == 0
    genotype = [str(root / "search"), *map(str, NETWORK)]
    assert bdp_nas_main(["retrain", *genotype, "--output-dir", str(root / "retrain")]) == 0
    return root


def test_searches(desk, searched, tmp_path):
    folder, out = tmp_path / "search", tmp_path / "out"
    shutil.copytree(searched / "search", folder)
    plot = ("plot", folder, "--pictures", 1, "--output-dir", out)
    export = ("export", folder, "--inherit", "--output-dir", out)
    retrain = ("retrain", folder, *NETWORK, "--output-dir", out)
    desk.spoil(folder / "supernet.safetensors", "bdp-nas", *export, named=folder)
    desk.spoil(folder / "found.json", "bdp-nas", *plot, named=folder, works=(*BITS, "kept"), fields=12)
    unused = "cells", "parts", "clip_grad", "without seed", "empty object"  # a plot takes nothing of it but the images
    desk.spoil(folder / "options.json", "bdp-nas", *plot, named=folder, works=(*BITS, *unused), fields=12)
    desk.spoil(folder / "genotype.json", "bdp-nas", *retrain, named=folder, works=BITS, fields=12)


def test_retrainings(desk, searched, tmp_path):
    folder = tmp_path / "retrain"
    shutil.copytree(searched / "retrain", folder)
    argv = ("export", folder, "--output-dir", tmp_path / "out")
    desk.spoil(folder / "network.safetensors", "bdp-nas", *argv, named=folder)


def test_tables(desk, tmp_path):
    genotype = index_to_genotype(3)
    columns = np.array([genotype_to_columns(index_to_genotype(index)) for index in range(300)], np.uint8)
    values = np.random.default_rng(0).random((300, 1))
    table = tmp_path / "table.npz"
    Table("nasbench201", np.array(CELL_OPERATIONS), columns, np.array(["digits"]), values, values).save(table)
    argv = ("query", genotype, "--table", table)
    assert desk.ask("bdp-nas", *argv).code == 0
    desk.spoil(table, "bdp-nas", *argv, works=BITS)
    arrays = dict(np.load(table))
    for name in arrays:
        for case, odd in {
            "missing": None,
            "text": "x",
            "a number": 7,
            "NaN": np.full(300, np.nan),
            "empty": [],
        }.items():
            changed = {key: value for key, value in (arrays | {name: odd}).items() if value is not None}
            np.savez(table, **changed)
            desk.refused(f"{name}: {case}", "bdp-nas", *argv)
    with (
        zipfile.ZipFile(table, "w", zipfile.ZIP_DEFLATED) as bomb,
        bomb.open("test.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**26,)})
        for _ in range(512):
            file.write(bytes(2**20))
    desk.refused("a bomb", "bdp-nas", *argv, named=table)
    macro = tmp_path / "macro.json"
    macro.write_text(json.dumps({"00000000": {"mean_acc": 90.0}, "11111111": {"mean_acc": 91.5}}))
    argv = ("query", "00000000", "--table", macro)
    assert desk.ask("bdp-nas", *argv).code == 0
    desk.spoil(macro, "bdp-nas", *argv, named="", works=BITS, fields=12)


def test_published_tables(desk, tmp_path):
    for name in ("table.pth", "table.pickle", "table.pbz2"):
        source, output = tmp_path / name, tmp_path / "table.npz"
        source.write_bytes(torch_file({"arch2infos": {}}))
        desk.spoil(source, "bdp-nas", "build-table", source, "--output", output, named=source)
        assert not output.exists()


def test_genotypes(desk, tmp_path):
    texts = [
        "",
        " ",
        "|",
        "|nor_conv_3x3~0|",
        "|nor_conv_3x3~9|+" * 3,
        "x" * 5000,
        "../..",
        "|none~0|+|none~0|none~1|+|é~0|",
    ]
    for text in [*texts, index_to_genotype(5)[:-1], index_to_genotype(5) + "\n|", "\x00", "|skip_connect~-1|"]:
        desk.refused(repr(text[:40]), "bdp-nas", "retrain", text, *NETWORK, "--output-dir", tmp_path / "out")


# --- frugal-shared ---


def test_reports(desk, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    write_json(run / "manifest.json", {"package": "delta-dit"})
    write_json(run / "results.json", {"psnr_db": 30.0})
    report = Report("A title", "and more")
    report.text("words")
    report.table([{"a": 1, "b": "x"}])
    report.figures([Figure(Image.new("RGB", (2, 2)), "a picture")])
    report.write(run)
    words = ("title='", "subtitle='", "blocks=[]", "package='x'")
    for name in ("manifest.json", "results.json", "report.json"):
        whole = (run / name).read_bytes()
        spoilt = damaged(whole) | foreign(desk.marker) | broken_json() | dict(changed_json(json.loads(whole)))
        for case, content in spoilt.items():
            put(run / name, content)
            answer = desk.run(join, [str(out), str(run)])
            works = case.startswith(BITS) or name == "results.json"
            desk.judge(f"{name}: {case}", answer, "report", named=run, works=works or case.startswith(words))
            shutil.rmtree(out, ignore_errors=True)
        put(run / name, whole)


def test_checkpoints(desk, tmp_path):
    save_checkpoint(tmp_path, 7, {"model": {"weight": torch.arange(64.0)}, "losses": [1.0, 2.0]})
    folder = tmp_path / "step-00000007"
    for name in ("state.json", "tensors.safetensors"):
        whole = (folder / name).read_bytes()
        spoilt = damaged(whole) | foreign(desk.marker) | {"a folder": None}
        del spoilt["last byte missing"]  # of the JSON: the line break behind it
        if name == "state.json":
            spoilt |= broken_json() | dict(changed_json(json.loads(whole)))
        for case, content in spoilt.items():
            put(folder / name, content)
            desk.cases += 1
            try:
                latest_checkpoint(tmp_path)
                desk.complaints.append(f"{name}: {case}: a run would go on from it, or begin again")
            except RunError as error:
                if str(folder) not in str(error) or "\n" in str(error) or desk.marker.exists():
                    desk.complaints.append(f"{name}: {case}: {error}")
        put(folder / name, whole)
    assert latest_checkpoint(tmp_path)[0] == 7
