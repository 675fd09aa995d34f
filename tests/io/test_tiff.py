"""TIFFs of others are read right, and others read ours."""

import logging

import numpy as np
import pytest
import tifffile

from biojax.errors import DependencyError, FileError, ShapeError
from biojax.io import Volume, open_volume, read_volume, write_volume

STACK = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)


def _write(path, data=STACK, **options):
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(path, data, **options)
    return path


# what others read


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.tiff", ".btf"])
def test_ome_is_understood_by_tifffile(tmp_path, suffix):
    data = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.int16).reshape(2, 3, 4, 5, 2)
    path = tmp_path / f"a{suffix}"
    write_volume(
        path, Volume(data, "tzyxc", spacing=(0.005, 0.0001, 0.000325), channels=["DAPI", "GFP µ"])
    )
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.is_bigtiff == (suffix == ".btf")
        assert (file.series[0].axes, file.series[0].dtype) == ("TZCYX", np.int16)
        assert np.array_equal(file.asarray(), np.moveaxis(data, -1, 2))
        ome = tifffile.xml2dict(file.ome_metadata or "")["OME"]
    pixels = ome["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == [5, 0.1, 0.325]
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"µm"}
    assert [channel["Name"] for channel in pixels["Channel"]] == ["DAPI", "GFP µ"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_imagej_is_understood_by_tifffile(tmp_path, dtype):
    data = np.arange(2 * 3 * 4 * 5 * 2).astype(dtype).reshape(2, 3, 4, 5, 2)
    write_volume(tmp_path / "a.tif", Volume(data, "tzyxc", spacing=(0.005, 0.0001, 0.0004)))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "TZCYX"
        assert np.array_equal(file.asarray(), np.moveaxis(data, -1, 2))
        metadata = file.imagej_metadata or {}
        tags = file.pages.first.tags
    assert (metadata["unit"], metadata["spacing"], metadata["mode"]) == ("micron", 5, "composite")
    assert (metadata["frames"], metadata["slices"], metadata["channels"]) == (2, 3, 2)
    assert (tags["XResolution"].value, tags["YResolution"].value) == ((5, 2), (10, 1))
    assert tags["ResolutionUnit"].value == 1


def test_rgb_is_understood_by_tifffile(tmp_path):
    data = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    for name, imagej in (("a.tif", True), ("a.ome.tif", False)):
        write_volume(tmp_path / name, Volume(data, "zyxc", channels=["red", "green", "blue"]))
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.is_imagej == imagej
            assert file.pages.first.photometric == 2
            assert np.array_equal(file.asarray(), data)


def test_what_imagej_cannot_hold_becomes_ome(tmp_path, monkeypatch):
    cases = {"int16": (1, 1, 1), "uint8": (1, 1e-15, 1)}
    for dtype, spacing in cases.items():
        volume = Volume(STACK.astype(dtype), "zyx", spacing=spacing)
        write_volume(tmp_path / f"{dtype}.tif", volume)
        with tifffile.TiffFile(tmp_path / f"{dtype}.tif") as file:
            assert file.is_ome
            assert not file.is_imagej
        assert read_volume(tmp_path / f"{dtype}.tif").spacing == spacing
    monkeypatch.setattr("biojax.io.tiff._CLASSIC_BYTES", 2**24)
    write_volume(tmp_path / "large.tif", Volume(STACK, "zyx"))
    with tifffile.TiffFile(tmp_path / "large.tif") as file:
        assert file.is_ome
        assert file.is_bigtiff


# what others write


def test_unnamed_axes_are_never_guessed(tmp_path):
    path = _write(tmp_path / "a.tif", metadata=None)
    for use in (read_volume, open_volume):
        with pytest.raises(ShapeError, match=r"a\.tif.*axes='zyx' or axes='tyx' or axes='cyx'"):
            use(path)
    assert read_volume(path, axes="zyx").axes == "zyx"
    assert np.array_equal(read_volume(path, axes="CYX").data, np.moveaxis(STACK, 0, -1))
    assert np.array_equal(read_volume(path, axes="xyz").data, STACK.transpose(2, 1, 0))
    for bad in ("yx", "zzx", "qyx", "tzyx"):
        with pytest.raises(ShapeError, match=rf"axes='{bad}' for an image of shape \(6, 20, 30\)"):
            read_volume(path, axes=bad)


def test_one_page_is_clear(tmp_path):
    assert read_volume(_write(tmp_path / "a.tif", STACK[0], metadata=None)).axes == "yx"
    rgb = STACK[0].reshape(20, 10, 3)
    volume = read_volume(_write(tmp_path / "b.tif", rgb, photometric="rgb", metadata=None))
    assert (volume.axes, volume.channels) == ("yxc", ("red", "green", "blue"))
    assert np.array_equal(volume.data, rgb)
    planar = _write(tmp_path / "c.tif", STACK[:3], photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_volume(planar).data, np.moveaxis(STACK[:3], 0, -1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 3, "byteorder": ">"},
        {"rowsperstrip": 7},
        {"tile": (16, 16)},
        {"tile": (16, 32), "compression": "zlib"},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_storage_does_not_matter(tmp_path, options, dtype):
    if "predictor" in options and "float" in dtype:
        pytest.skip("a predictor of floats needs imagecodecs")
    data = STACK.astype(dtype)
    read = read_volume(_write(tmp_path / "a.tif", data, metadata={"axes": "ZYX"}, **options))
    assert (read.axes, read.dtype, read.spacing) == ("zyx", dtype, None)
    assert np.array_equal(read.data, data)


def test_tiles_in_depth_and_single_bits(tmp_path):
    deep = np.arange(17 * 20 * 30, dtype=np.uint16).reshape(17, 20, 30)
    path = _write(
        tmp_path / "a.tif",
        deep,
        volumetric=True,
        tile=(16, 16, 16),
        compression="zlib",
        metadata=None,
    )
    with open_volume(path) as volume:
        assert volume.axes == "zyx"
        assert np.array_equal(volume[14:17, ::3, 20:], deep[14:17, ::3, 20:])
    bits = STACK[0] % 3 == 0
    path = _write(tmp_path / "b.tif", bits, photometric="minisblack", metadata=None)
    assert np.array_equal(read_volume(path).data, bits)


@pytest.mark.parametrize(
    ("unit", "length"),
    [("nm", 100), ("µm", 0.1), ("mm", 0.0001), ("cm", 0.00001), ("Å", 1000), (None, 0.1)],
)
def test_ome_units(tmp_path, unit, length):
    metadata: dict = {"axes": "ZYX"}
    for axis in "ZYX":
        metadata[f"PhysicalSize{axis}"] = length
        metadata |= {f"PhysicalSize{axis}Unit": unit} if unit else {}
    path = _write(tmp_path / "a.ome.tif", metadata=metadata)
    assert read_volume(path).spacing == (0.0001, 0.0001, 0.0001)


@pytest.mark.parametrize("axes", ["TCZYX", "TZCYX", "CTZYX", "ZCTYX"])
def test_ome_orders(tmp_path, axes):
    data = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.uint16).reshape(2, 3, 4, 5, 6)
    names = [f"dye {i}" for i in range(data.shape[axes.index("C")])]
    metadata = {"axes": axes, "Channel": {"Name": names}}
    read = read_volume(_write(tmp_path / "a.ome.tif", data, metadata=metadata))
    assert (read.axes, read.channels) == ("tzyxc", tuple(names))
    assert np.array_equal(read.data, data.transpose([axes.index(axis) for axis in "TZYXC"]))


def test_partly_known_spacing_is_kept_apart(tmp_path):
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2}
    volume = read_volume(_write(tmp_path / "a.ome.tif", metadata=metadata))
    assert volume.spacing is None
    assert volume.meta == {"known_spacing": {"y": 0.0002, "x": 0.0001}}
    metadata = {"axes": "ZYX", "PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}
    assert read_volume(_write(tmp_path / "b.ome.tif", metadata=metadata)).meta == {}


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_imagej_of_others(tmp_path, unit):
    path = _write(
        tmp_path / "a.tif",
        np.stack([STACK, STACK + 1], 1),
        imagej=True,
        resolution=(10.0, 4.0),
        metadata={"axes": "ZCYX", "spacing": -1.5, "unit": unit},
    )
    volume = read_volume(path)
    assert (volume.axes, volume.spacing) == ("zyxc", (0.0015, 0.00025, 0.0001))
    assert np.array_equal(volume.data[..., 1], STACK + 1)


def test_imagej_units_of_their_own(tmp_path):
    metadata = {"axes": "ZYX", "spacing": 2, "unit": "mm", "yunit": "um", "zunit": "cm"}
    path = _write(tmp_path / "a.tif", imagej=True, resolution=(2, 2), metadata=metadata)
    assert read_volume(path).spacing == (20.0, 0.0005, 0.5)
    metadata = {"axes": "ZYX", "spacing": 2, "unit": "pixel"}
    path = _write(tmp_path / "b.tif", imagej=True, resolution=(2, 2), metadata=metadata)
    assert read_volume(path).spacing is None


def test_imagej_stacks_that_name_z_as_frames(tmp_path):
    path = _write(tmp_path / "a.tif", imagej=True, metadata={"axes": "TYX"})
    assert read_volume(path).axes == "tyx"
    assert read_volume(path, axes="zyx").axes == "zyx"


def test_scale_set_by_another_program_wins(tmp_path):
    path = tmp_path / "a.tif"
    write_volume(path, Volume(STACK, "zyx", spacing=(3e-3, 2e-3, 1e-3), meta={"a": 1}))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["XResolution"].overwrite((2, 1))
    volume = read_volume(path)
    assert (volume.spacing, volume.meta) == ((3e-3, 2e-3, 0.5e-3), {"a": 1})


def test_resolution_of_plain_files(tmp_path):
    scan = {"resolution": (72, 72), "resolutionunit": "INCH"}
    path = _write(tmp_path / "a.tif", STACK[0], metadata=None, **scan)
    assert read_volume(path).spacing is None
    scale = {"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}
    path = _write(tmp_path / "b.tif", STACK[0], metadata=None, **scale)
    assert read_volume(path).spacing == (0.001, 0.0005)


def test_inverted_and_indexed_pixels_are_left_and_noted(tmp_path):
    path = _write(tmp_path / "a.tif", STACK[0], photometric="miniswhite", metadata=None)
    volume = read_volume(path)
    assert np.array_equal(volume.data, STACK[0])
    assert volume.meta == {"photometric": "MINISWHITE"}
    colors = np.zeros((3, 256), np.uint16)
    index = STACK[0].astype(np.uint8)
    path = _write(tmp_path / "b.tif", index, photometric="palette", colormap=colors, metadata=None)
    assert read_volume(path).meta == {"photometric": "PALETTE"}
    assert np.array_equal(read_volume(path).data, index)


def test_the_first_level_of_a_pyramid_is_read(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"tile": (16, 16), "photometric": "minisblack"}
        file.write(STACK, subifds=1, metadata={"axes": "ZYX"}, **options)
        file.write(STACK[:, ::2, ::2], subfiletype=1, **options)
    assert np.array_equal(read_volume(path).data, STACK)


def test_thumbnails_do_not_count_and_other_images_do(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, :8, :8], subfiletype=1, metadata=None)
    assert np.array_equal(read_volume(path).data, STACK[0])
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, :8, :8], metadata=None)
    with pytest.raises(FileError, match=r"2 images \(YX \(20, 30\) uint16, YX \(8, 8\) uint16\)"):
        read_volume(path)


def test_a_codec_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("biojax.io.tiff_pages.has_codecs", lambda: False)
    path = _write(tmp_path / "a.tif", STACK[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["Compression"].overwrite(5)
    for use in (read_volume, open_volume):
        with pytest.raises(DependencyError, match=r"a\.tif.*LZW.*biojax\[codecs\]"):
            use(path)


def test_tifffile_says_nothing_on_the_side(tmp_path, caplog, capfd):
    path = _write(tmp_path / "a.tif", metadata=None, compression="zlib")
    path.write_bytes(path.read_bytes()[:-2000])
    with caplog.at_level(logging.DEBUG), pytest.raises(FileError):
        read_volume(path, axes="zyx")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.data
def test_real_images(data_folder):
    nuclei = read_volume(data_folder / "microscopy_nuclei/image.tif")
    assert (nuclei.axes, nuclei.shape, nuclei.dtype) == ("yx", (512, 512), np.uint16)
    muscle = sorted((data_folder / "ultrasound_muscle/image").glob("*.tif"))
    for path in muscle:  # PackBits with thumbnails from GIMP, ImageJ, plain
        volume = read_volume(path)
        assert (volume.axes, volume.channels) == ("yxc", ("red", "green", "blue"))
        assert volume.spacing is None
        assert np.array_equal(volume.data, tifffile.imread(path, series=0))
        label = read_volume(data_folder / "ultrasound_muscle/label" / path.name)
        assert label.shape == volume.shape[:2]
