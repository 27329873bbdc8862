"""Tables of numbers as tasks."""

from pathlib import Path

import pytest
import torch

from clnp.data import ArrayFiles
from clnp.errors import DataError

ROWS = ["1,2,0.5,train", "3,4,1.5,Train", "5,6,2.5,val", "7,8,3.5,test", ""]


def written(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    return path


def test_columns_become_inputs_and_targets(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a, b,y,split", ROWS)
    task = ArrayFiles([path], loss="mse")[0]
    assert task.name == "a"
    assert torch.equal(task.train[0], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(task.train[1], torch.tensor([0.5, 1.5]))
    assert torch.equal(task.validation[1], torch.tensor([2.5]))
    assert torch.equal(task.test[0], torch.tensor([[7.0, 8.0]]))


def test_several_targets_and_labels(tmp_path: Path) -> None:
    rows = ["0,1,0,train", "1,1,2,train", "1,0,3,validation", "0,0,4,test"]
    path = written(tmp_path / "a.csv", "y_a,y_b,x,split", rows)
    task = ArrayFiles([path], loss="bce")[0]
    assert torch.equal(task.train[1], torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert task.sample_shape == (1,)


def test_classes_are_whole_numbers(tmp_path: Path) -> None:
    rows = ["0,1,train", "1,2,train", "1,2,validation", "0,3,test"]
    task = ArrayFiles([written(tmp_path / "a.csv", "y,x,split", rows)])[0]
    assert (task.train[1].dtype, task.num_classes) == (torch.int64, 2)
    rows[1] = "0.5,2,train"
    with pytest.raises(DataError, match=r"a.csv, line 3: expected whole numbers as classes"):
        ArrayFiles([written(tmp_path / "a.csv", "y,x,split", rows)])[0]


@pytest.mark.parametrize(
    ("header", "rows", "text"),
    [
        ("a,b,split", ["1,2,train"], r"expected a column y or y_\.\.\. in the first row"),
        ("y,split", ["1,train"], "expected a column of inputs in the first row"),
        ("a,y,b", ["1,2,3"], "expected a column split in the first row"),
        ("a,a,y,split", ["1,2,3,train"], "expected distinct names of columns"),
        ("a,y,split", ["1,2"], "line 2: expected 3 cells, got 2"),
        ("a,y,split", ["1,2,train", "x,2,test"], "line 3: expected a number in column a, got 'x'"),
        ("a,y,split", ["1,2,later"], "line 2: expected train, validation or test .* got 'later'"),
        ("a,y,split", [], "expected names of columns and rows, got 1 rows"),
        ("a,y,split", ["1,2,train"], "expected a test split"),
        ("a,y,split", ["nan,2,train", "1,2,test"], "NaN|finite"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, header: str, rows: list[str], text: str) -> None:
    path = written(tmp_path / "a.csv", header, rows)
    with pytest.raises(DataError, match=text):
        ArrayFiles([path], loss="mse")[0]
