"""The text of errors, the nearest choice, optional packages, and crossing process boundaries."""

import copy
import multiprocessing
import pickle

import pytest

from biojax import errors
from biojax.errors import BiojaxError, ConfigError, DependencyError, ShapeError, nearest, require

CLASSES = {
    BiojaxError: Exception,
    errors.ShapeError: ValueError,
    errors.UnsupportedError: NotImplementedError,
    errors.ConfigError: ValueError,
    errors.DataError: ValueError,
    errors.FileError: BiojaxError,
    errors.CheckpointError: BiojaxError,
    errors.DependencyError: ImportError,
}
PARTS = ("conv", "rank 6", "rank 3 to 5", "Drop an axis", "x[0]")


def test_every_error_is_here():
    public = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert set(public) == set(CLASSES)


@pytest.mark.parametrize("error", CLASSES)
def test_text_and_family(error):
    raised = error(*PARTS)
    assert str(raised) == (
        "conv: got rank 6. Expected rank 3 to 5. Drop an axis. Did you mean x[0]?"
    )
    assert str(error(*PARTS[:4])) == "conv: got rank 6. Expected rank 3 to 5. Drop an axis."
    assert str(error(*PARTS[:4], nearest="")) == str(error(*PARTS[:4]))
    assert isinstance(raised, BiojaxError)
    assert isinstance(raised, CLASSES[error])


def test_the_parts_are_attributes():
    raised = ShapeError(*PARTS)
    parts = (raised.where, raised.got, raised.expected, raised.fix, raised.nearest)
    assert parts == PARTS
    assert ShapeError(*PARTS[:4]).nearest is None


@pytest.mark.parametrize("error", CLASSES)
@pytest.mark.parametrize("parts", [PARTS, PARTS[:4]])
def test_copies_keep_class_text_and_parts(error, parts):
    raised = error(*parts)
    for copied in (pickle.loads(pickle.dumps(raised)), copy.deepcopy(raised), copy.copy(raised)):
        assert type(copied) is error
        assert str(copied) == str(raised)
        assert vars(copied) == vars(raised)
        assert copied.args == raised.args


def _fail() -> None:
    raise ConfigError(*PARTS)


def test_an_error_comes_back_from_a_worker():
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(ConfigError) as caught:
        pool.apply(_fail)
    assert caught.value.nearest == "x[0]"


@pytest.mark.parametrize(
    ("name", "choices", "found"),
    [
        ("unett", ["unet", "cnn_classifier"], "'unet'"),
        ("clasifier", ("rnn_classifier", "unet"), "'rnn_classifier'"),
        ("plane", {"xla": 1, "planes": 2}, "'planes'"),
        ("zzz", ["unet", "cnn_classifier"], None),
        ("", ["unet"], None),
        ("unet", [], None),
        ("unet", (name for name in ["unet", "unet2"]), "'unet'"),
    ],
)
def test_nearest(name, choices, found):
    assert nearest(name, choices) == found


def test_require_imports_what_is_there():
    import json.decoder

    assert require("json", "nothing") is json
    assert require("json.decoder", "nothing") is json.decoder


@pytest.mark.parametrize("module", ["surely_not_installed", "surely_not_installed.part"])
def test_require_names_the_extra(module):
    with pytest.raises(DependencyError) as caught:
        require(module, "nifti")
    text = str(caught.value)
    assert text.startswith(f"{module}: got '")
    assert "Expected the package surely_not_installed to be installed" in text
    assert text.endswith('Install it with: pip install "biojax[nifti]".')
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
