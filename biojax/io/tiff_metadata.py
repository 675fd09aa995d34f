"""Spacing, channel names and records in the metadata of OME-TIFF, ImageJ and plain TIFF."""

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from biojax.errors import FileError
from biojax.io import record
from biojax.io.units import from_mm, to_mm
from biojax.io.volume import Volume

if TYPE_CHECKING:
    import tifffile

__all__ = ["RGB", "check_ome", "describe", "imagej_options", "ome_options", "resolution"]

RGB = ("red", "green", "blue")
_NAMESPACE = "biojax"
_PLAIN_UNITS = {3: "cm", 4: "mm", 5: "um"}  # inches are for printers: 72 says nothing of a voxel


def check_ome(path: str, file: "tifffile.TiffFile") -> None:
    """Refuse OME-XML that names other files, or more planes than the file has pages.

    tifffile would open those files, and allocate for those planes.
    """
    if not file.is_ome or not file.ome_metadata:
        return
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError as error:
        raise _bad_ome(path, f"OME-XML that does not parse ({error})") from error
    own = root.get("UUID")
    for part in root.iterfind(".//{*}TiffData/{*}UUID"):
        name = part.get("FileName", "")
        if part.text != own and name.lower() != file.filename.lower():
            raise _bad_ome(path, f"an image that continues in another file, {name!r}")
    if any("modulo" in (note.get("Namespace") or "") for note in root.iter()):
        raise _bad_ome(path, "OME-XML with modulo axes (lifetime, angle, ...)")
    planes = len(file.pages) * max(1, file.pages.first.samplesperpixel)
    for pixels in root.iterfind(".//{*}Pixels"):
        sizes = [pixels.get(f"Size{axis}", "1") for axis in "TZC"]
        parts = [value for data in pixels.iterfind("{*}TiffData") for value in data.attrib.values()]
        if not all(text.isdecimal() and len(text) < 10 for text in sizes + parts):
            raise _bad_ome(path, "OME-XML whose sizes are no small whole numbers")
        t, z, c = map(int, sizes)
        if max(t * z * c, *map(int, parts), 0, 0) > planes:
            raise _bad_ome(path, f"OME-XML for {t * z * c} planes and {planes} planes in the file")


def _bad_ome(path: str, got: str) -> FileError:
    return FileError(
        path,
        got,
        "an OME-TIFF of one file whose metadata fit its pages",
        "Save it again as one whole OME-TIFF with at most t, z, y, x and channels",
    )


def describe(file: "tifffile.TiffFile", series: "tifffile.TiffPageSeries") -> dict[str, Any]:
    """What the file says beside its pixels.

    Returns:
      spacing: millimetres or None for each of z, y, x. channels: names or None.
      record: text that may be a record of ours, or None. meta: what else is worth keeping.
    """
    found: dict[str, Any]
    if series.kind == "ome" and file.ome_metadata:
        found = _describe_ome(file.ome_metadata)
    elif series.kind == "imagej" and file.imagej_metadata:
        found = _describe_imagej(file.imagej_metadata, series.keyframe)
    else:
        unit = _PLAIN_UNITS.get(int(series.keyframe.resolutionunit))
        found = {"spacing": _from_tags(series.keyframe, unit, unit)}
    page = series.keyframe
    if page.samplesperpixel in (3, 4) and page.photometric in (2, 6):  # RGB, YCbCr unpacked to RGB
        found["channels"] = (*RGB, "alpha")[: page.samplesperpixel]
    if page.photometric in (0, 3):
        found["meta"] = {"photometric": "MINISWHITE" if page.photometric == 0 else "PALETTE"}
    return {"channels": None, "record": None, "meta": {}, **found}


def _describe_ome(xml: str) -> dict[str, Any]:
    root = ElementTree.fromstring(xml)
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return {"spacing": {}}
    spacing = {
        axis.lower(): to_mm(
            pixels.get(f"PhysicalSize{axis}", "nan"), pixels.get(f"PhysicalSize{axis}Unit", "um")
        )
        for axis in "ZYX"
    }
    names = [channel.get("Name", "") for channel in pixels.iterfind("{*}Channel")]
    path = f".//{{*}}MapAnnotation[@Namespace='{_NAMESPACE}']/{{*}}Value/{{*}}M"
    return {
        "spacing": spacing,
        "channels": tuple(names) if all(name and name.isprintable() for name in names) else None,
        "record": root.findtext(path),
    }


def _describe_imagej(metadata: dict[str, Any], page: "tifffile.TiffPage") -> dict[str, Any]:
    unit = str(metadata.get("unit", ""))
    spacing = _from_tags(page, str(metadata.get("yunit", unit)), unit)
    depth = str(metadata.get("spacing", "nan")).lstrip("-")  # ImageJ takes its absolute value, too
    info = metadata.get("Info")
    return {
        "spacing": {**spacing, "z": to_mm(depth, str(metadata.get("zunit", unit)))},
        "record": info if isinstance(info, str) else None,
    }


def _from_tags(
    page: "tifffile.TiffPage", y_unit: str | None, x_unit: str | None
) -> dict[str, float | None]:
    """Millimetres per pixel from the resolution tags, which hold pixels per unit."""
    spacing = {}
    for axis, code, unit in (("y", 283, y_unit), ("x", 282, x_unit)):
        pixels, units = page.tags.valueof(code, default=(0, 1))
        spacing[axis] = to_mm(str(Decimal(units) / Decimal(pixels)), unit) if pixels else None
    return spacing


def ome_options(volume: Volume, axes: str) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` for OME-XML with sizes in µm and a record."""
    metadata: dict[str, Any] = {
        "axes": axes,
        "MapAnnotation": {"Namespace": _NAMESPACE, "Value": {"record": record.pack(volume)}},
    }
    for axis, length in zip(volume.spatial_axes.upper(), volume.spacing or (), strict=False):
        metadata[f"PhysicalSize{axis}"] = from_mm(length, "um")
        metadata[f"PhysicalSize{axis}Unit"] = "\u00b5m"
    if volume.channels and not axes.endswith("S"):
        metadata["Channel"] = {"Name": list(volume.channels)}
    return {"metadata": metadata}


def imagej_options(volume: Volume, axes: str) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` for an ImageJ hyperstack in µm, with a record as its Info."""
    metadata: dict[str, Any] = {"axes": axes, "Info": record.pack(volume)}
    if 2 <= dict(zip(volume.axes, volume.shape, strict=True)).get("c", 1) <= 7 and "C" in axes:
        metadata["mode"] = "composite"
    if volume.spacing is None:
        return {"metadata": metadata}
    *depth, y, x = volume.spacing
    metadata["unit"] = "micron"
    if depth:
        metadata["spacing"] = from_mm(depth[0], "um")
    return {
        "metadata": metadata,
        "resolution": (resolution(x), resolution(y)),
        "resolutionunit": "NONE",
    }


def resolution(millimetres: float) -> tuple[int, int] | None:
    """Pixels per µm as two 32-bit integers, or None if they cannot hold seven digits of it.

    >>> resolution(0.957), resolution(0.0001), resolution(1e-20)
    ((1, 957), (10, 1), None)
    """
    most = 2**32 - 1
    exact = 1 / Fraction(from_mm(millimetres, "um"))
    nearest = exact.limit_denominator(max(1, min(most, int(most / exact))))
    if nearest.numerator > most or abs(nearest / exact - 1) > Fraction(1, 10**7):
        return None
    return nearest.numerator, nearest.denominator
