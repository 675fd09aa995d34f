"""What is aimed at, what was reached, and by how much not."""

import dataclasses

import pytest

from benchmarks.aims import AIMS, summary
from benchmarks.contest import Result


def result(name, mode="forward", dtype="float32", xla=3.0, torch=None, compile=1.0) -> Result:
    rounds = {"biojax": (1.0, 1.0, 2.0), "xla": (xla, xla, 2 * xla)}
    if torch:
        rounds["torch contiguous"] = (torch, torch, 2 * torch)
    return Result(name, mode, dtype, rounds, {"biojax": compile, "xla": 0.1})


def rows(*results) -> list[str]:
    return summary(results).splitlines()[2:]


def test_what_is_reached():
    assert rows(result("conv/3d_64_c32", torch=2.0)) == [
        "| XLA / biojax, each case | float32 | forward | 1 | at least 0.95 | 3.00 | yes | - |",
        "| XLA / biojax, mean of 3-D convolutions | float32 | forward | 1 | at least 2.5 | 3.00 "
        "| yes | - |",
        "| XLA / biojax, mean of all 3-D shapes, both dtypes | both | forward | 1 | at least 2.5 "
        "| 3.00 | yes | - |",
        "| PyTorch / biojax, each case | float32 | forward | 1 | at least 0.6 | 2.00 | yes | - |",
        "| PyTorch / biojax, mean of all | float32 | forward | 1 | at least 1 | 2.00 | yes | - |",
        "| PyTorch / biojax, mean of convolutions | float32 | forward | 1 | at least 1 | 2.00 "
        "| yes | - |",
        "| seconds to compile a kernel | float32 | forward | 1 | at most 5 | 1.00 | yes | - |",
    ]


def test_dtypes_and_modes_stand_apart():
    found = rows(
        result("conv/2d_a"),
        result("conv/2d_a", "both", xla=0.75),
        result("conv/2d_b", "both", xla=0.5),
        result("unet/patch_64", "train", xla=4.0),
        result("conv/2d_a_bfloat16", dtype="bfloat16", xla=0.9),
    )
    assert [row for row in found if "each case" in row] == [
        "| XLA / biojax, each case | float32 | forward | 1 | at least 0.95 | 3.00 | yes | - |",
        "| XLA / biojax, each case | float32 | with gradients | 3 | at least 0.95 | 0.50 "
        "| no (-0.45) | conv/2d_b 0.50 (-0.45), conv/2d_a 0.75 (-0.20) |",
        "| XLA / biojax, each case | bfloat16 | forward | 1 | at least 0.95 | 0.90 | no (-0.05) "
        "| conv/2d_a_bfloat16 0.90 (-0.05) |",
    ]


def test_a_mean_is_geometric_and_missed_as_a_whole():
    (row,) = [
        row
        for row in rows(result("conv/3d_a", xla=1.0), result("conv_transpose/3d_b", xla=4.0))
        if "mean of 3-D" in row
    ]
    assert row.endswith("| 2 | at least 2.5 | 2.00 | no (-0.50) | conv/3d_a 1.00 (-1.50) |")


def test_all_shapes_in_three_dimensions_count_together():
    found = rows(
        result("conv/3d_a", xla=2.0),
        result("conv/3d_a", "both", xla=5.0),
        result("conv/3d_a_bfloat16", dtype="bfloat16", xla=16.0),
        result("layer_norm/3d_b", xla=0.5),
        result("conv/2d_c", xla=9.0),
        result("unet/patch_64", xla=9.0),
    )
    assert [row.partition("both dtypes ")[2] for row in found if "both dtypes" in row] == [
        "| both | forward | 3 | at least 2.5 | 2.52 | yes | - |",
        "| both | with gradients | 1 | at least 2.5 | 5.00 | yes | - |",
    ]


def test_the_unet_and_compilation():
    found = rows(
        result("unet/patch_64", "train", torch=0.5, compile=50.0),
        result("gru/t256", "both", compile=8.0),
    )
    assert [row.partition(" | float32 ")[2] for row in found[-3:]] == [
        "| with gradients | 1 | at least 1 | 0.50 | no (-0.50) | unet/patch_64 0.50 (-0.50) |",
        "| with gradients | 1 | at most 5 | 8.00 | no (+3.00) | gru/t256 8.00 (+3.00) |",
        "| with gradients | 1 | at most 40 | 50.00 | no (+10.00) | unet/patch_64 50.00 (+10.00) |",
    ]


def test_attention_has_a_bar_for_each_mode():
    found = rows(
        result("attention/t4096_n8", xla=4.0, torch=0.95),
        result("attention/t4096_n8", "both", xla=4.0, torch=0.95),
        result("attention/t1024_n8_causal", "both", xla=1.0, torch=0.7),
    )
    about = [row.partition(" | float32 ")[2] for row in found if "1024 to 4096" in row]
    assert about == [
        "| forward | 1 | at least 3 | 4.00 | yes | - |",
        "| with gradients | 1 | at least 3 | 4.00 | yes | - |",
        "| forward | 1 | at least 0.9 | 0.95 | yes | - |",
        "| with gradients | 1 | at least 1 | 0.95 | no (-0.05) | attention/t4096_n8 0.95 (-0.05) |",
    ]


def test_neighbourhoods_are_held_against_windows_of_the_same_run_and_mode():
    windows = result("window_attention/49_n3_k16", "both")
    neighbourhoods = [
        dataclasses.replace(
            result("neighborhood_attention/48_n3_k16", mode), rounds={"biojax": (5.0, 4.5, 9.0)}
        )
        for mode in ("forward", "both")
    ]
    (row,) = [row for row in rows(windows, *neighbourhoods) if "neighbourhoods / windows" in row]
    assert "| with gradients | 1 | at most 4 | 5.00 | no (+1.00) |" in row


def test_memory_of_attention_is_in_mebibytes():
    extra = {"biojax": 2**28, "xla": 2**33}
    held = dataclasses.replace(result("attention/t16384_n8"), extra_bytes=extra)
    (row,) = [row for row in rows(held, result("attention/t4096_n8")) if "MiB" in row]
    assert "| forward | 1 | at most 256 | 256.00 | yes |" in row


@pytest.mark.parametrize("aim", AIMS, ids=[aim.title for aim in AIMS])
def test_a_bar_itself_is_enough(aim):
    assert aim.reached(aim.bar)
    assert aim.reached(2 * aim.bar) != (aim.over is max)
