"""What a query tells, and that a wrong one is refused in one line."""

import json
import pickle

import numpy as np
import pytest

from bdp_nas.commands import query
from bdp_nas.commands.cli import main
from bdp_nas.commands.options import QueryConfig
from bdp_nas.spaces.nasbench201 import OPERATIONS, genotype_to_columns, index_to_genotype
from bdp_nas.table import Table


def table_of(indices, accuracies):
    """Return a table of these architectures with the same accuracies on two data sets."""
    operations = np.array([genotype_to_columns(index_to_genotype(index)) for index in indices], np.uint8)
    values = np.array([accuracies] * 2).T
    return Table("nasbench201", np.array(OPERATIONS), operations, np.array(["cifar10", "cifar100"]), values, values)


def test_a_query_tells_accuracy_rank_and_regret(tmp_path, capsys):
    table_of([7, 1835, 9930], [60.0, 70.0, 80.0]).save(tmp_path / "t.npz")
    config = QueryConfig(genotype=index_to_genotype(1835), table=tmp_path / "t.npz", json=tmp_path / "rows.json")
    rows = query.main(config)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert [row["dataset"] for row in rows] == ["cifar10", "cifar100"]
    keys = {"dataset", "validation", "test", "rank", "architectures", "regret", "genotype"}
    assert all(row.keys() == keys and row["rank"] == 2 and row["architectures"] == 3 for row in rows)
    assert rows[0]["regret"] == pytest.approx(10)
    assert index_to_genotype(1835) in capsys.readouterr().out


def test_what_nobody_measured_is_null(tmp_path):
    published = {"22212220": {"mean_acc": 93.1}, "00000000": {"mean_acc": 50.0}}
    (tmp_path / "macro.json").write_text(json.dumps(published))
    (row,) = query.main(QueryConfig(genotype="00000000", table=tmp_path / "macro.json"))
    assert (row["validation"], row["rank"]) == (None, 2)


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
