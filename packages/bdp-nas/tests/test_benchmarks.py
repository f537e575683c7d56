"""Published files become tables, and pickles that would run something are refused without being run."""

import bz2
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from bdp_nas.benchmarks import read_benchmark
from bdp_nas.commands.cli import main
from bdp_nas.spaces.nasbench201 import index_to_genotype
from bdp_nas.table import Table

INDICES = (7, 1835, 9930)


def trial(epochs, sets, base):
    """One training, as the benchmarks write it: accuracies of every epoch, here base + epoch / 1000."""
    accuracies = {f"{name}@{epoch}": np.float64(base + epoch / 1000) for name in sets for epoch in range(epochs)}
    return {"epochs": epochs, "seed": 777, "eval_acc1es": accuracies, "train_times": OrderedDict({0: 1.0})}


def recipe(genotype, epochs, base):
    """What came out of an architecture with one recipe: two seeds on CIFAR-10, one on the others."""
    trials = {
        ("cifar10-valid", 777): trial(epochs, ("x-valid", "ori-test"), base),
        ("cifar10-valid", 888): trial(epochs, ("x-valid", "ori-test"), base + 2),
        ("cifar10", 777): trial(epochs, ("ori-test",), base + 3),
        ("cifar100", 777): trial(epochs, ("x-valid", "x-test", "ori-test"), base - 20),
        ("ImageNet16-120", 777): trial(epochs, ("x-valid", "x-test", "ori-test"), base - 40),
    }
    seeds = {"cifar10-valid": [777, 888], "cifar10": [777], "cifar100": [777], "ImageNet16-120": [777]}
    return {"arch_index": 0, "arch_str": genotype, "all_results": trials, "dataset_seed": seeds}


def architectures(*names):
    return {
        index: {
            name: recipe(index_to_genotype(index), epochs, 60 + 10 * number + epochs / 100) for name, epochs in names
        }
        for number, index in enumerate(INDICES)
    }


def nats_folder(folder):
    folder.mkdir()
    for index, content in architectures(("12", 12), ("200", 20)).items():
        (folder / f"{index:06d}.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(content, protocol=4)))
    (folder / "meta.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"meta_archs": []})))
    return folder


def nats_file(path):
    content = {"meta_archs": [], "arch2infos": architectures(("12", 12), ("200", 20)), "evaluated_indexes": {7}}
    path.write_bytes(bz2.compress(pickle.dumps(content)))
    return path


def torch_file(path):
    torch.save({"meta_archs": [], "arch2infos": architectures(("less", 12), ("full", 20))}, path)
    return path


@pytest.mark.parametrize(
    ("make", "name"), [(nats_folder, "NATS-simple"), (nats_file, "NATS.pickle.pbz2"), (torch_file, "NAS-201.pth")]
)
@pytest.mark.parametrize("epochs", [12, 200])
def test_published_files_become_a_table(tmp_path, make, name, epochs):
    found = read_benchmark(make(tmp_path / name), epochs).query(index_to_genotype(1835))
    last = {12: 70.12 + 0.011, 200: 70.2 + 0.019}[epochs]
    told = {name: (each.validation, each.test) for name, each in found.items()}
    assert told["cifar10"] == pytest.approx((last + 1, last + 3))  # the mean of two seeds
    assert told["cifar100"] == pytest.approx((last - 20, last - 20))
    assert told["imagenet16"] == pytest.approx((last - 40, last - 40))


def test_the_files_of_a_folder_can_be_watched(tmp_path):
    seen = []
    table = read_benchmark(nats_folder(tmp_path / "NATS"), 12, lambda files: seen.extend(files) or files)
    assert [path.name for path in seen] == [f"{index:06d}.pickle.pbz2" for index in INDICES]
    assert len(table.test) == len(INDICES)


def test_the_command_writes_the_table(tmp_path, capsys):
    output = tmp_path / "new" / "table.npz"
    assert main(["build-table", str(nats_folder(tmp_path / "NATS")), "--output", str(output), "--epochs", "12"]) == 0
    assert "3 architectures, nasbench201" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in output.parent.iterdir()] == ["table.npz"]
    assert len(Table.load(output).test) == 3


def test_another_number_of_epochs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="epochs=13 is not possible; allowed: 12, 200"):
        read_benchmark(torch_file(tmp_path / "a.pth"), 13)


def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    (tmp_path / "a.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"arch2infos": Harmful()})))
    torch.save({"arch2infos": Harmful()}, tmp_path / "a.pth")
    for name in ("a.pickle.pbz2", "a.pth"):
        with pytest.raises(ValueError, match=r"cannot be read .*allowed: a benchmark's own file, of plain values"):
            read_benchmark(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pickle.pbz2", "a.pth"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"rubbish", "cannot be read"),
        (bz2.compress(pickle.dumps([1])), "lacks 'arch2infos'"),
        (bz2.compress(pickle.dumps({"arch2infos": {}})), "has no architectures"),
        (bz2.compress(pickle.dumps({"arch2infos": {0: {"200": {"arch_str": index_to_genotype(0)}}}})), "lacks"),
        (bz2.compress(pickle.dumps({"arch2infos": {0: {"200": {"arch_str": "x"}}}})), "cell 'x' does not parse"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, capsys, content, told):
    (tmp_path / "a.pbz2").write_bytes(content)
    assert main(["build-table", str(tmp_path / "a.pbz2"), "--output", str(tmp_path / "t.npz")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "t.npz").exists()
