"""Files of images to and from `Volume`, one file per format."""

from biojax.io.atomic import make_folder, replacing
from biojax.io.files import open_volume, read_volume, write_planes, write_volume
from biojax.io.lazy import LazyVolume
from biojax.io.volume import Volume

__all__ = [
    "LazyVolume",
    "Volume",
    "make_folder",
    "open_volume",
    "read_volume",
    "replacing",
    "write_planes",
    "write_volume",
]
