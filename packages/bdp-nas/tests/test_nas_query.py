"""Tables of published files, what a query tells, and pickles that are refused without being run."""

import bz2
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from bdp_nas.commands.cli import main
from bdp_nas.commands.options import BuildTableConfig, QueryConfig
from bdp_nas.commands.query import build_table, query
from bdp_nas.spaces.nasbench201 import index_to_genotype
from bdp_nas.table import Table
from frugal_shared.errors import UsageError

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
    build_table(BuildTableConfig(source=make(tmp_path / name), output=tmp_path / "new" / "table.npz", epochs=epochs))
    found = Table.load(tmp_path / "new" / "table.npz").query(index_to_genotype(1835))
    last = {12: 70.12 + 0.011, 200: 70.2 + 0.019}[epochs]
    told = {name: (each.validation, each.test) for name, each in found.items()}
    assert told["cifar10"] == pytest.approx((last + 1, last + 3))  # the mean of two seeds
    assert told["cifar100"] == pytest.approx((last - 20, last - 20))
    assert told["imagenet16"] == pytest.approx((last - 40, last - 40))


def test_a_query_tells_accuracy_rank_and_regret(tmp_path, capsys):
    build_table(BuildTableConfig(source=torch_file(tmp_path / "a.pth"), output=tmp_path / "t.npz"))
    config = QueryConfig(genotype=index_to_genotype(1835), table=tmp_path / "t.npz", json=tmp_path / "rows.json")
    rows = query(config)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert [row["dataset"] for row in rows] == ["cifar10", "cifar100", "imagenet16"]
    keys = {"dataset", "validation", "test", "rank", "architectures", "regret", "genotype"}
    assert all(row.keys() == keys and row["rank"] == 2 and row["architectures"] == 3 for row in rows)
    assert rows[0]["regret"] == pytest.approx(10)
    assert index_to_genotype(1835) in capsys.readouterr().out


def test_what_nobody_measured_is_null(tmp_path):
    published = {"22212220": {"mean_acc": 93.1}, "00000000": {"mean_acc": 50.0}}
    (tmp_path / "macro.json").write_text(json.dumps(published))
    (row,) = query(QueryConfig(genotype="00000000", table=tmp_path / "macro.json"))
    assert (row["validation"], row["rank"]) == (None, 2)


def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    (tmp_path / "a.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps({"arch2infos": Harmful()})))
    torch.save({"arch2infos": Harmful()}, tmp_path / "a.pth")
    for name in ("a.pickle.pbz2", "a.pth"):
        with pytest.raises(UsageError, match=r"cannot be read .*allowed: a benchmark's own file, of plain values"):
            build_table(BuildTableConfig(source=tmp_path / name, output=tmp_path / "t.npz"))
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


@pytest.mark.parametrize(
    ("argv", "told", "code"),
    [
        (["|none~0|"], "table=None is not possible; allowed: --table FILE, which build-table makes", 2),
        (["|none~0|", "--table", "nothing.npz"], "table 'nothing.npz' is no file; allowed", 2),
        (["|none~0|", "--table", "pickle.npz"], "cannot be read; allowed: an .npz file without pickles", 2),
        (["|none~0|", "--table", "other.npz"], "has schema 2; allowed: 1", 2),
        (["|none~0|", "--table", "macro.json"], "does not parse", 2),
        (["00000000", "--table", "macro.json"], "is not in the table; allowed: its 1 architectures", 2),
        ([".", "--table", "macro.json"], "has no genotype.json", 1),
    ],
)
def test_a_wrong_query_is_refused_in_one_line(tmp_path, capsys, monkeypatch, argv, told, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1]))
    (tmp_path / "macro.json").write_text(json.dumps({"22212220": {"mean_acc": 93.1}}))
    np.savez(tmp_path / "other.npz", schema=np.array(2))
    assert main(["query", *argv, "--json", "rows.json"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "rows.json").exists()
