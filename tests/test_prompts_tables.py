"""Prompts in tables: the header decides, and a bad row is named."""

import numpy as np
import pytest

from steadysam.errors import SteadyError
from steadysam.prompts.files import read_prompts
from steadysam.types import Grid

AFFINE = np.array([[0.1, -1.1, 0.3, 20.0], [0.9, 0.05, -0.4, -30.0], [0.05, 0.2, -3.0, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((40, 30, 12), AFFINE)

FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = {frame}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,1.5,-2,3e1,0,0,0,1,1,1,0,F-1,"a, b",
vtkMRMLMarkupsFiducialNode_1,4,5,6,0,0,0,1,1,0,0,F-2,,
"""


def read(tmp_path, name: str, text: str, grid: Grid | None = None):
    (tmp_path / name).write_bytes(text.encode())
    return read_prompts(tmp_path / name, grid)


@pytest.mark.parametrize("frame, sign", [("RAS", 1), ("0", 1), ("LPS", -1), ("1", -1)])
def test_fcsv(tmp_path, frame, sign):
    prompts = read(tmp_path, "a.fcsv", FCSV.format(frame=frame))
    assert [point.xyz_mm for point in prompts.points] == [(1.5 * sign, -2 * sign, 30)]  # the second is not selected
    assert prompts.points[0].description == "a, b"
    assert prompts.history[0]["skipped"] == 1


@pytest.mark.parametrize("line", ["", "# CoordinateSystem = IJK", "# CoordinateSystem ="])
def test_fcsv_without_frame_is_refused(tmp_path, line):
    text = FCSV.replace("# CoordinateSystem = {frame}", line)
    with pytest.raises(SteadyError, match="PROMPT_SPACE_MISSING"):
        read(tmp_path, "a.fcsv", text)


def test_fcsv_column_order_is_read_from_its_header(tmp_path):
    text = "# CoordinateSystem = RAS\n# columns = label,z,y,x\nA,3,2,1\n"
    assert read(tmp_path, "a.fcsv", text).points[0].xyz_mm == (1, 2, 3)


@pytest.mark.parametrize("delimiter, name", [(",", "a.csv"), ("\t", "a.tsv"), (";", "a.csv")])
@pytest.mark.parametrize("letters, sign", [("l,p,s", -1), ("r,a,s", 1), ("R,A,S", 1)])
def test_slicer_tables(tmp_path, delimiter, name, letters, sign):
    text = f"label,{letters},defined,selected,visible,locked,description\nF-1,1,2,3,1,1,1,0,first\n"
    text += "F-2,1,2,3,0,1,1,0,\n"
    prompts = read(tmp_path, name, text.replace(",", delimiter).replace("\n", "\r\n"))
    assert [(point.id, point.xyz_mm) for point in prompts.points] == [("F-1", (sign, 2 * sign, 3))]
    assert prompts.points[0].description == "first"


def test_napari_indices_are_in_array_order(tmp_path):
    text = "index,axis-0,axis-1,axis-2,label\n0,3.0,4.0,5.0,a\n\n1,1.5,2.5,0,negative\n"
    prompts = read(tmp_path, "a.csv", text, GRID)
    assert np.allclose(prompts.points_mm(), (AFFINE[:3, :3] @ np.array([[3, 4, 5], [1.5, 2.5, 0]]).T).T + AFFINE[:3, 3])
    assert [point.sign for point in prompts.points] == ["positive", "negative"]
    with pytest.raises(SteadyError, match="PROMPT_GRID_MISSING"):
        read(tmp_path, "a.csv", text)
    with pytest.raises(SteadyError, match="PROMPT_SLICE_MISSING"):
        read(tmp_path, "a.csv", "index,axis-0,axis-1\n0,1,2\n", GRID)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("label,l,p,s\nA,1,2,3\nB,1,2\n", "row 3 .*3 cells"),
        ("label,l,p,s\nA,1,2,3,4\n", "row 2"),
        ("label;l;p;s\nA;1,5;2;3\n", "row 2 .*1,5"),
        ("label,l,p,s\nA,1,5,2,3\n", "row 2 .*5 cells"),
        ("label,l,p,s\nA,1,two,3\n", "row 2 .*two"),
        ("label,l,p,s\nA,1,nan,3\n", "row 2"),
        ("label,l,p,s\nA,1,1e999,3\n", "row 2"),
        ("label,l,p,s\nA,1,=cmd|x,3\n", "row 2"),
        ("label,l,p,s\nA,1,1_0,3\n", "row 2"),
        ("label,l,p,s,selected\nA,1,2,3,maybe\n", "row 2 .*maybe"),
        ("l,l,p,s\n1,1,2,3\n", "row 1 .*twice"),
        ("A,1,2,3\nB,1,2,3\n", "no known columns"),
        ('label,l,p,s\n"A,1,2,3\n', "PROMPT_CSV"),
        ("label,l,p,s\nA\0,1,2,3\n", "PROMPT_CSV"),
    ],
)
def test_bad_tables_are_refused_with_the_row(tmp_path, text, message):
    with pytest.raises(SteadyError, match=message) as caught:
        read(tmp_path, "a.csv", text)
    assert caught.value.code == "PROMPT_CSV"


def test_columns_xyz_carry_no_frame(tmp_path):
    with pytest.raises(SteadyError, match="PROMPT_SPACE_MISSING"):
        read(tmp_path, "a.csv", "label,x,y,z\nA,1,2,3\n")


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("label,l,p,s\nä,1,2,3\n".encode("utf-16"))
    with pytest.raises(SteadyError, match="PROMPT_CSV"):
        read_prompts(tmp_path / "a.csv")
