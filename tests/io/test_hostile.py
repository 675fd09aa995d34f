"""Files that are damaged or made to harm end in one `BiojaxError` that names the path."""

import contextlib
import gzip
import logging
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import tifffile

from biojax.errors import BiojaxError, FileError
from biojax.io import Volume, open_volume, read_volume, write_volume

STACK = np.random.default_rng(0).integers(0, 60_000, (3, 20, 24), np.uint16)


def _tiff(path, width, height, pixels, compression=1, rows=None):
    """A small TIFF whose header claims whatever it is told to."""
    tags = [
        (256, width), (257, height), (258, 8), (259, compression), (262, 1),
        (273, 122), (277, 1), (278, rows or height), (279, len(pixels)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + entries + bytes(4) + pixels)
    return path


def _nifti(path, dims, voxels=bytes(8), **fields):
    header = nib.Nifti1Header().structarr.copy()
    header["magic"], header["datatype"], header["bitpix"], header["vox_offset"] = b"n+1", 2, 8, 352
    header["dim"] = [*dims, *[0] * (8 - len(dims))]
    header["pixdim"][:4] = 1
    for name, value in fields.items():
        header[name] = value
    raw = header.tobytes() + bytes(4) + voxels
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def check_fails(path, match, max_memory=2**22, **options):
    """Reading fails with the text, within the memory, and says nothing elsewhere."""
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=match) as caught:
            read_volume(path, **options)
        assert tracemalloc.get_traced_memory()[1] < max_memory
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    with pytest.raises(FileError), open_volume(path) as volume:
        volume.read()


# TIFF


def test_the_maker_of_small_tiffs(tmp_path):
    path = _tiff(tmp_path / "a.tif", 10, 12, bytes(range(120)))
    assert np.array_equal(read_volume(path).data, np.arange(120).reshape(12, 10))


def test_a_header_that_claims_70_gib(tmp_path):
    path = _tiff(tmp_path / "a.tif", 300_000, 250_000, bytes(598))
    assert path.stat().st_size == 720
    check_fails(path, "75000000000 bytes of pixels in a file of 720 bytes")
    path = _tiff(tmp_path / "b.tif", 300_000, 250_000, zlib.compress(bytes(10**5)), 8)
    check_fails(path, "75000000000 bytes of pixels")
    path = _tiff(tmp_path / "c.tif", 2**32 - 1, 2**32 - 1, bytes(9), rows=1)
    check_fails(path, "bytes of pixels")


def test_a_cap_on_memory(tmp_path):
    write_volume(tmp_path / "a.tif", Volume(STACK, "zyx"))
    with pytest.raises(FileError, match="raise max_bytes"):
        read_volume(tmp_path / "a.tif", max_bytes=STACK.nbytes - 1)
    assert read_volume(tmp_path / "a.tif", max_bytes=STACK.nbytes).shape == STACK.shape


def test_a_deflate_bomb(tmp_path):
    bomb = zlib.compress(bytes(2**26), 9)  # 64 MiB in 65 kB
    check_fails(_tiff(tmp_path / "a.tif", 200, 200, bomb, 8), "unpack to more than 145536 bytes")
    check_fails(_tiff(tmp_path / "b.tif", 20, 20, zlib.compress(STACK.tobytes() * 99), 8), "page 0")


def test_a_deflate_bomb_in_a_tile_far_larger_than_its_page(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], tile=(16, 32), compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages.first.tags[name].overwrite(2**15)
    check_fails(path, "far larger than the page")


def test_deflate_that_is_short_or_wrong(tmp_path):
    check_fails(_tiff(tmp_path / "a.tif", 20, 20, zlib.compress(bytes(100)), 8), "page 0")
    check_fails(
        _tiff(tmp_path / "b.tif", 20, 20, zlib.compress(bytes(400))[:-6], 8), "end too early"
    )
    check_fails(_tiff(tmp_path / "c.tif", 20, 20, b"\x78\x9c" + bytes(50), 8), "page 0.*Error")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.btf"])
def test_a_cut_tiff(tmp_path, name, compression):
    path = tmp_path / name
    write_volume(path, Volume(STACK, "zyx", spacing=(3, 2, 1)), compression=compression)
    whole = path.read_bytes()
    for size in (0, 1, 4, 8, 12, 100, 400, len(whole) // 2, len(whole) - 900):
        path.write_bytes(whole[:size])
        check_fails(path, "Expected", axes="zyx")


@pytest.mark.parametrize("page", range(1, 6))
def test_a_cut_plain_tiff_never_loses_pages_in_silence(tmp_path, page):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in STACK.repeat(2, 0):
            file.write(plane, compression="zlib", metadata=None, contiguous=False)
    with tifffile.TiffFile(path) as file:
        start = file.pages[page].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:start])
    check_fails(path, f"breaks off after page {page - 1}", axes="zyx")
    path.write_bytes(whole[: start + 3])
    check_fails(path, "corrupted", axes="zyx")


@pytest.mark.parametrize("name", ["a.tif", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("start", [b"", b"II*\0", b"MM\0*", b"\x1f\x8b\x08", b"\\\x01\0\0"])
def test_garbage(tmp_path, name, start):
    for seed in range(5):
        (tmp_path / name).write_bytes(start + np.random.default_rng(seed).bytes(2000))
        check_fails(tmp_path / name, "Expected")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('SizeZ="3"', 'SizeZ="999999999"', "for 999999999 planes"),
        ('SizeZ="3"', 'SizeZ="99999999999999999999"', "no small whole numbers"),
        ('SizeZ="3"', 'SizeZ="-3"', "no small whole numbers"),
        ('PlaneCount="3"', 'PlaneCount="999999999"', "planes"),
        ('PlaneCount="3"/>', '><UUID FileName="../../secret.tif">a</UUID></TiffData>', "secret"),
        ("<Pixels", '<XMLAnnotation Namespace="a/modulo"/><Pixels', "modulo"),
        ("</Pixels>", "</Pixel>", "does not parse"),
        ("<OME", "<!DOCTYPE a [" + "".join(
            f'<!ENTITY e{i} "{"x" * 99 if i == 0 else f"&e{i - 1};" * 20}">' for i in range(9)
        ) + "]><OME", "broken|parse|planes|entity|amplification"),
    ],
)  # fmt: skip
def test_ome_xml_that_lies(tmp_path, old, new, text):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata={"axes": "ZYX"})
    xml = str(tifffile.tiffcomment(path))
    assert old in xml
    xml = xml.replace(old, new)
    if "ENTITY" in new:
        xml = xml.replace("</OME>", "<a>&e8;</a></OME>")
    tifffile.tiffcomment(path, xml.encode())
    check_fails(path, text, max_memory=2**25)


def test_records_that_lie(tmp_path):
    path = tmp_path / "a.tif"
    lies = (
        '"affine": [[NaN, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]',
        '"channels": ["a", "b", "c"]',
        '"channels": [3]',
        '"meta": [1]',
        '"meta": {"a": NaN}',
        '"modality": 3',
    )
    for lie in lies:
        info = '{"biojax": 1, "axes": "zyx", "shape": [3, 20, 24], ' + lie + "}"
        metadata = {"axes": "ZYX", "Info": info, "unit": "mm", "spacing": 1}
        tifffile.imwrite(path, STACK, imagej=True, resolution=(1, 1), metadata=metadata)
        with contextlib.suppress(FileError):
            assert np.array_equal(read_volume(path).data, STACK)


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("dims", "fields", "text"),
    [
        ([3, -2, 2, 2], {}, "dimensions"),
        ([0, 2, 2, 2], {}, "dimensions"),
        ([8, 2, 2, 2], {}, "dimensions|too low"),
        ([7, 2, 2, 1, 1, 1, 2, 1], {}, "dimensions"),
        ([4, 32767, 32767, 32767, 32767], {}, "bytes in a file of"),
        ([3, 2, 2, 2], {"vox_offset": 1e18}, "bytes in a file of"),
        ([3, 2, 2, 2], {"vox_offset": np.nan}, "NaN"),
        ([3, 2, 2, 2], {"vox_offset": -5}, "too low"),
        ([3, 2, 2, 2], {"datatype": 999}, "999"),
        ([3, 2, 2, 2], {"datatype": 128, "bitpix": 24}, "plain numbers|bytes in"),
        ([3, 2, 2, 2], {"magic": b"ni1"}, "magic"),
        ([3, 2, 2, 2], {"scl_slope": 2, "scl_inter": np.inf}, "intercept"),
        ([3, 2, 2, 2], {"pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]}, "spacing"),
        ([3, 2, 2, 2], {"sform_code": 1, "srow_x": [np.nan] * 4}, "nan"),
        ([3, 2, 2, 2], {"sform_code": 1, "srow_x": [np.inf] * 4}, "inf"),
        ([3, 2, 2, 2], {"sform_code": 1}, "singular"),
        ([3, 2, 2, 2], {"qform_code": 1, "quatern_b": np.nan}, "Expected"),
        ([3, 3, 2, 2], {}, "bytes in a file of|missing"),
    ],
)
def test_nifti_headers_that_lie(tmp_path, name, dims, fields, text):
    check_fails(_nifti(tmp_path / name, dims, **fields), text)


def test_a_gzip_bomb(tmp_path):
    path = _nifti(tmp_path / "a.nii.gz", [3, 512, 512, 64], bytes(2**24))
    with pytest.raises(FileError, match="at most"):
        read_volume(path, max_bytes=2**23)
    path = _nifti(tmp_path / "b.nii.gz", [3, 512, 512, 512], bytes(8))
    check_fails(path, "134218080 bytes in a file of")
    path = _nifti(tmp_path / "c.nii.gz", [3, 2, 2, 2], bytes(2**26))  # more than the header says
    tracemalloc.start()
    try:
        assert read_volume(path).shape == (2, 2, 2)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 3, 100, 340, 4000, -9, -1])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_cut_nifti(tmp_path, name, size):
    path = _nifti(tmp_path / name, [3, 20, 20, 20], np.random.default_rng(0).bytes(8000))
    path.write_bytes(path.read_bytes()[:size])
    check_fails(path, "Expected")


# anything


@pytest.mark.parametrize(
    "name", ["a.ome.tif", "zlib.ome.tif", "a.tif", "a.btf", "a.nii", "a.nii.gz"]
)
def test_flipped_bytes_never_escape(tmp_path, name, caplog, capfd):
    """Whatever is overwritten, a file is read or refused by a `BiojaxError`."""
    path, key = tmp_path / name, np.random.default_rng(1)
    volume = Volume(STACK, "zyx", affine=np.diag([3, 2, 1, 1]), channels=["a"], meta={"a": 1})
    write_volume(path, volume, compression="zlib" if name.startswith("zlib") else None)
    whole, read = path.read_bytes(), 0
    for _ in range(150):
        raw = bytearray(whole)
        for at in key.integers(0, min(len(raw), 1500), key.integers(1, 8)):
            raw[at : at + 2] = key.choice([b"\xff\xff", b"\0\0", b"\x7f\xff", b"\x01\x02"])
        path.write_bytes(raw)
        with contextlib.suppress(BiojaxError):
            read_volume(path, max_bytes=2**26)
            read += 1
    assert read < 140
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
