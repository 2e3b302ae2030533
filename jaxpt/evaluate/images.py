"""Image classification without downloads: the digits that scikit-learn ships, for vision models of laptop size.

task = digits()                                   # extra: images
task.train, task.train_labels                     # float32 [N, 8, 8] in [0, 1], int32 [N]
baselines(task)                                   # accuracy of the majority class and of a linear model of pixels
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from jaxpt.core.types import Float, Int
from jaxpt.evaluate.classification import logistic
from jaxpt.evaluate.report import fingerprint

DIGITS = "62d980502259934e"  # fingerprint of `digits()`


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Images in [0, 1] and their classes. An image is on one side, by the hash of its pixels."""

    name: str
    train: Float[np.ndarray, "N height width"]
    train_labels: Int[np.ndarray, " N"]
    validation: Float[np.ndarray, "M height width"]
    validation_labels: Int[np.ndarray, " M"]
    classes: int

    @property
    def fingerprint(self) -> str:
        """Hash of all images and labels."""
        return fingerprint([self.train, self.train_labels, self.validation, self.validation_labels])


def digits(share: float = 0.2) -> ImageTask:
    """1,797 handwritten digits of 8 x 8 pixels (UCI ML repository, CC BY 4.0), 17 levels of grey.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits are in scikit-learn: pip install 'jaxpt[images]'") from error
    found = load_digits()
    return image_task("digits", np.asarray(found.images) / 16, np.asarray(found.target), share)


def image_task(
    name: str, images: Float[np.ndarray, "N height width"], labels: Int[np.ndarray, " N"], share: float = 0.2
) -> ImageTask:
    """A task of `images` in [0, 1]; about `share` of them are held out.

    Raises:
      ValueError: other shapes, values outside 0 to 1, or classes that are not 0, 1, ...
    """
    x, y = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    if x.ndim != 3 or y.shape != x.shape[:1]:
        raise ValueError(f"need images [N, height, width] and N labels, got {x.shape} and {len(y)} labels")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"pixels must be from 0 to 1, got {x.min()} to {x.max()}")
    classes = int(y.max()) + 1
    if set(y.tolist()) != set(range(classes)):
        raise ValueError(f"classes must be 0, 1, ..., got {sorted(set(y.tolist()))}")
    held = np.array([zlib.crc32(np.round(255 * image).astype(np.uint8).tobytes()) % 1000 < share * 1000 for image in x])
    return ImageTask(name, x[~held], y[~held], x[held], y[held], classes)


def baselines(task: ImageTask) -> dict[str, float]:
    """Accuracy on the validation images of the most frequent class and of a logistic regression on pixels."""
    constant = np.bincount(task.train_labels).argmax()
    train, test = (x.reshape(len(x), -1).astype(np.float64) for x in (task.train, task.validation))
    found = logistic(train, task.train_labels, test, task.classes, penalty=0.1)
    right = task.validation_labels
    return {"majority": float((right == constant).mean()), "logistic": float((found == right).mean())}
