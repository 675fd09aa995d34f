"""A trained segmentation model with all it needs: what comes out of a run's folder."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biojax.data import intensity
from biojax.errors import CheckpointError, ShapeError
from biojax.inference.sliding_window import predict_volume
from biojax.io import Volume
from biojax.models import create_model
from biojax.training import Checkpoints

__all__ = ["Recipe", "Segmenter", "load_segmenter"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a segmentation is beside its parameters: plain JSON, kept with every checkpoint.

    Args:
      model: the name and the fields of `biojax.models.create_model`.
      channels: of the image.
      classes: the name of each class, background first.
      intensity: the normalisation, as `biojax.data.to_config` writes it.
      patch: the size of the patches that it was trained on.
    """

    model: Mapping[str, Any]
    channels: int
    classes: tuple[str, ...]
    intensity: Any
    patch: tuple[int, ...]

    def to_config(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **dataclasses.asdict(self),
            "model": dict(self.model),
            "classes": list(self.classes),
            "patch": list(self.patch),
        }

    @classmethod
    def from_config(cls, config: Any, where: str = "recipe") -> Self:
        """What `to_config` wrote.

        Raises:
          CheckpointError: it is something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            recipe = cls(**{name: config[name] for name in names})
            if not isinstance(recipe.model["name"], str):
                raise TypeError("a model's name")
            changes = {"classes": tuple(recipe.classes), "patch": tuple(map(int, recipe.patch))}
            return dataclasses.replace(recipe, **changes)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                where,
                f"a configuration without {error}",
                f"the keys {', '.join(names)}",
                "Give the folder of a segmentation run that biojax trained",
            ) from error

    def create_model(self) -> nn.Module:
        """The model, without parameters."""
        fields = dict(self.model)
        return create_model(fields.pop("name"), **fields)


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """Segments volumes as they were prepared in training: normalise, predict, take the best class.

    The image is read and normalised whole, in float32, since most normalisations look at all of it;
    `predict_volume` alone goes from file to file in bounded memory.

    Args:
      recipe: what it was trained as.
      model: of the recipe.
      variables: `params`, and `batch_stats` where the model has some.
    """

    recipe: Recipe
    model: nn.Module
    variables: Any

    @functools.cached_property
    def normalise(self) -> Callable[[np.ndarray], np.ndarray]:
        """The normalisation of training, on (*spatial, c)."""
        return intensity.from_config(self.recipe.intensity)

    def __call__(self, volume: Volume | np.ndarray, *, reduce: str = "argmax", **options) -> Any:
        """Segment a volume.

        Args:
          volume: a `Volume`, or an array (*spatial, c), in the unit of the training images.
          reduce: "argmax" for labels, "probabilities" or "logits".
          **options: of `biojax.inference.predict_volume`; the window is the training patch if it
            is not given.

        Returns:
          The same kind as `volume`.

        Raises:
          ShapeError: other axes or channels than in training.
          DataError: values that are not finite.
        """
        array = volume.model_array() if isinstance(volume, Volume) else volume
        if array.ndim != len(self.recipe.patch) + 1 or array.shape[-1] != self.recipe.channels:
            raise ShapeError(
                "Segmenter",
                f"an image of shape {array.shape}, channels last",
                f"{len(self.recipe.patch)} spatial axes and {self.recipe.channels} channels",
                "Give an image of the kind that the model was trained on",
            )
        image: Any = self.normalise(np.asarray(array))
        if isinstance(volume, Volume):
            axes = volume.spatial_axes + "c"
            # Not replace(): a lazy volume's fields would bring its file along.
            image = Volume(image, axes, volume.spacing, volume.affine, modality=volume.modality)
        options = {"window": self.recipe.patch, **options}
        return predict_volume(self.model.apply, self.variables, image, reduce=reduce, **options)


def load_segmenter(folder: str | os.PathLike) -> Segmenter:
    """The model of a run, from its newest checkpoint that verifies.

    Raises:
      CheckpointError: no good checkpoint there, or one of something else.
    """
    checkpoints = Checkpoints(Path(folder))
    config = checkpoints.config()
    recipe = Recipe.from_config(config, str(folder))
    model = recipe.create_model()
    image = jax.ShapeDtypeStruct((1, *recipe.patch, recipe.channels), jnp.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), image)
    abstract = {k: v for k, v in abstract.items() if k in ("params", "batch_stats")}
    variables = checkpoints.restore_variables(abstract, config=config)
    return Segmenter(recipe, model, jax.device_put(variables))
