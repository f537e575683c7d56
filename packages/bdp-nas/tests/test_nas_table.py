"""Tables: what a query says, which files are read, and which are refused."""

import json
import pickle

import numpy as np
import pytest

from bdp_nas.spaces.nasbench201 import OPERATIONS, genotype_to_columns, index_to_genotype
from bdp_nas.table import Table

INDICES = [3, 1835, 9930, 0]
TEST = np.array([[90.0, 20.0], [50.0, 40.0], [94.0, 30.0], [90.0, 10.0]])


def arrays(**changed):
    """A table of four architectures."""
    return {
        "schema": np.array(1),
        "space": np.array("nasbench201"),
        "operation_names": np.array(OPERATIONS),
        "operations": np.array([genotype_to_columns(index_to_genotype(index)) for index in INDICES], np.uint8),
        "datasets": np.array(["digits", "letters"]),
        "validation": np.where(TEST > 90, np.nan, TEST - 1),
        "test": TEST,
    } | changed


def write(path, **values):
    np.savez(path, **values)
    return path


def test_a_query_gives_accuracy_rank_and_regret(tmp_path):
    table = Table.load(write(tmp_path / "t.npz", **arrays()))
    found = table.query(index_to_genotype(1835))
    assert list(found) == ["digits", "letters"]
    digits, letters = found.values()
    assert (digits.validation, digits.test, digits.rank, digits.architectures, digits.regret) == (49, 50, 4, 4, 44)
    assert (letters.rank, letters.regret) == (1, 0)
    assert np.isnan(table.query(index_to_genotype(9930))["digits"].validation)


def test_equal_accuracies_share_the_better_rank(tmp_path):
    table = Table.load(write(tmp_path / "t.npz", **arrays()))
    assert [table.query(index_to_genotype(index))["digits"].rank for index in INDICES] == [2, 4, 1, 2]


def test_a_saved_table_is_the_same(tmp_path):
    table = Table.load(write(tmp_path / "t.npz", **arrays()))
    table.save(tmp_path / "again")
    again = Table.load(tmp_path / "again")
    assert again.space == table.space
    for name in ("operation_names", "operations", "datasets", "validation", "test"):
        assert np.array_equal(getattr(again, name), getattr(table, name), equal_nan=name == "validation")


def test_nasbench201_by_its_columns_is_read(tmp_path):
    columns = [
        "ImageNet16-120/x-test",  # in another order: columns count by name
        "cifar10-valid/x-valid",
        "cifar10/ori-test",
        "cifar100/x-valid*",
        "cifar100/x-test",
        "ImageNet16-120/x-valid*",
    ]
    accuracy = np.arange(24, dtype=np.float32).reshape(4, 6)
    other = {"op_names": arrays()["operation_names"], "ops": arrays()["operations"], "acc12": accuracy}
    path = write(tmp_path / "t.npz", acc200=accuracy, acc200_cols=np.array(columns), **other)
    found = Table.load(path).query(index_to_genotype(1835))
    assert {name: (s.validation, s.test) for name, s in found.items()} == {
        "cifar10": (7, 8),
        "cifar100": (9, 10),
        "imagenet16": (11, 6),
    }
    path = write(tmp_path / "t.npz", acc200=accuracy[:, 1:], acc200_cols=np.array(columns[1:]), **other)
    with pytest.raises(ValueError, match="a table lacks the column 'ImageNet16-120/x-test'"):
        Table.load(path)


def test_nasbench_macro_in_its_published_form_is_read(tmp_path):
    path = tmp_path / "nas-bench-macro_cifar10.json"
    path.write_text(json.dumps({"22212220": {"mean_acc": 93.13, "std": 0.1}, "00000000": {"mean_acc": 45.36}}))
    standing = Table.load(path).query("00000000")["cifar10"]
    assert (standing.test, standing.rank, standing.regret) == (45.36, 2, pytest.approx(47.77))
    for text in ("{", "[]", '{"012": 3}', '{"012": {"mean_acc": 1}, "01": {"mean_acc": 1}}', "{}"):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            Table.load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": np.array(2)}, "has schema 2; allowed: 1"),
        ({"space": np.array("nb101")}, "a table of the space 'nb101'; allowed: nasbench201"),
        ({"operations": np.full((4, 6), 9, np.uint8)}, "a table has operation 9; allowed: below 5"),
        ({"operations": np.zeros(0, np.uint8)}, r"operations have the shape \(0,\)"),
        ({"test": TEST[:3]}, r"test has the shape \(3, 2\); allowed: \(4, 2\)"),
        ({"test": np.full((4, 2), np.nan)}, "accuracies that are not numbers"),
    ],
)
def test_a_table_of_another_schema_is_one_line(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message) as error:
        Table.load(write(tmp_path / "t.npz", **arrays(**changed)))
    assert "\n" not in str(error.value)


def test_a_missing_array_is_named(tmp_path):
    whole = arrays()
    del whole["test"]
    with pytest.raises(ValueError, match="a table lacks the array 'test'"):
        Table.load(write(tmp_path / "t.npz", **whole))
    with pytest.raises(ValueError, match="has schema none; allowed: 1"):
        Table.load(write(tmp_path / "t.npz", something=TEST))


class Trap:
    """What a pickle could do: it must not."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    bare, inside, array = tmp_path / "bare.npz", tmp_path / "inside.npz", tmp_path / "array.npy"
    bare.write_bytes(pickle.dumps(Trap()))
    write(inside, **arrays(test=np.array([Trap()], dtype=object)))
    np.save(array, TEST)
    text = tmp_path / "text.npz"
    text.write_text("accuracy\n")
    (tmp_path / "empty.npz").touch()
    for path in (bare, inside, array, text, tmp_path / "empty.npz"):
        with pytest.raises(ValueError, match=r"cannot be read; allowed: an \.npz file without pickles"):
            Table.load(path)
    with pytest.raises(ValueError, match="is no file"):
        Table.load(tmp_path / "absent.npz")


def test_an_architecture_that_is_not_there_is_one_line(tmp_path):
    table = Table.load(write(tmp_path / "t.npz", **arrays()))
    with pytest.raises(ValueError, match="is not in the table; allowed: its 4 architectures"):
        table.query(index_to_genotype(5))
    with pytest.raises(ValueError, match="does not parse"):
        table.query("42")
