import numpy as np
import pytest
import tifffile

from biojax.data import Case, MinMax, find_cases, load_case
from biojax.errors import DataError, FileError, ShapeError
from biojax.io import Volume

AFFINE = np.diag([3.0, 1.0, 1.0, 1.0])


@pytest.fixture
def folders(tmp_path):
    """Two cases in two folders, whose endings differ, beside files that are no images."""
    for folder, names in [
        ("image", ["b.tif", "a.v2.ome.tif", ".hidden.tif", "notes.json"]),
        ("label", ["a.v2.tif", "b.tiff", "README.md"]),
    ]:
        (tmp_path / folder).mkdir()
        for name in names:
            path = tmp_path / folder / name
            pixels = np.arange(30).reshape(5, 6) % (7 if folder == "image" else 2)
            if ".tif" in name:
                tifffile.imwrite(path, pixels.astype(np.uint8))
            else:
                path.write_text("{}")
    return tmp_path / "image", tmp_path / "label"


def volumes(**changes):
    image = Volume(np.ones((4, 5, 6), np.float32), "zyx", affine=AFFINE)
    label = Volume(np.zeros((4, 5, 6), np.uint8), "zyx", affine=AFFINE)
    return Case("liver", image, label.replace(**changes))


def test_images_and_labels_are_paired_by_name(folders):
    cases = find_cases(*folders)
    assert [case.name for case in cases] == ["a.v2", "b"]
    assert cases[0].image == folders[0] / "a.v2.ome.tif"
    assert cases[0].label == folders[1] / "a.v2.tif"
    assert [case.label for case in find_cases(folders[0])] == [None, None]


def test_cases_come_in_order_of_name(tmp_path):
    for name in ("a-b.tif", "a.tif", "B.tif"):
        (tmp_path / name).touch()
    assert [case.name for case in find_cases(tmp_path)] == ["B", "a", "a-b"]


def test_names_without_a_partner_are_listed(folders):
    tifffile.imwrite(folders[1] / "patient_3.tif", np.zeros((2, 2), np.uint8))
    tifffile.imwrite(folders[0] / "patient-3.tif", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"2 names .* patient-3, patient_3.*mean 'patient_3'"):
        find_cases(*folders)


def test_folders_that_hold_no_pairs(folders, tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        find_cases(tmp_path / "images", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="without images"):
        find_cases(tmp_path / "empty")
    (folders[0] / "b.nii.gz").touch()
    with pytest.raises(DataError, match=r"both b.nii.gz and b.tif"):
        find_cases(*folders)


def test_files_are_read_into_arrays(folders):
    case = load_case(find_cases(*folders)[1], classes=2, intensity=MinMax())
    pixels = np.arange(30).reshape(5, 6)
    np.testing.assert_allclose(case.image[..., 0], pixels % 7 / 6, rtol=1e-6)
    np.testing.assert_array_equal(case.label, pixels % 2)
    assert case.label is not None
    assert case.image.shape == (5, 6, 1)
    assert case.image.dtype == np.float32
    assert case.label.dtype == np.uint8


def test_volumes_and_arrays_are_taken_as_they_are():
    case = volumes()
    loaded = load_case(case, classes=2)
    assert case.label is not None
    assert loaded.image.shape == (4, 5, 6, 1)
    assert loaded.label is case.label.data
    image = np.ones((4, 5, 2))
    assert load_case(Case("a", image)).image is image
    assert load_case(Case("a", image)).label is None


def test_labels_become_integers():
    label = load_case(volumes(data=np.full((4, 5, 6), 3.0))).label
    assert label is not None
    assert label.dtype == np.int32
    assert (label == 3).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": np.zeros((4, 5, 5), np.uint8)}, "liver.*voxels"),
        ({"affine": None, "spacing": (3, 1, 1.1)}, r"liver.*spacing"),
        ({"affine": AFFINE * [[1], [-1], [1], [1]]}, "liver.*mm apart"),
        ({"affine": np.array(AFFINE) + np.eye(4, k=3) * 0.6}, "0.6 mm apart"),
        ({"axes": "zyc", "affine": None, "spacing": None}, "liver.*axes zyc"),
        ({"axes": "tyx", "affine": None, "spacing": None}, "liver.*axes tyx"),
    ],
)
def test_geometry_that_differs(changes, said):
    with pytest.raises(ShapeError, match=said):
        load_case(volumes(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"affine": None, "spacing": None},
        {"affine": None},
        {"affine": np.array(AFFINE) + np.eye(4, k=3) * 0.4},
        {"affine": None, "spacing": (3.0001, 1, 1)},
    ],
)
def test_geometry_that_is_unknown_or_off_by_rounding(changes):
    case = volumes(**changes)
    read = load_case(case)
    assert case.label is not None
    np.testing.assert_array_equal(read.image[..., 0], case.image.data)
    np.testing.assert_array_equal(read.label, case.label.data)


def test_arrays_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"case a.*channel axis"):
        load_case(Case("a", np.zeros((4, 5)), np.zeros((4, 5), int)))


@pytest.mark.data
def test_real_slices_with_their_masks(data_folder):
    folder = data_folder / "ultrasound_muscle"
    cases = find_cases(folder / "image", folder / "label")
    assert len(cases) == 24
    case = load_case(cases[0], intensity=MinMax())
    assert case.label is not None
    assert case.image.shape[:-1] == case.label.shape
