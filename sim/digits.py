"""The demo's classifier of handwritten digits: its trained weights, its images, and the training.

``python -m sim.digits`` trains an MLP 64-1024-1024-10 on the 1797 images of 8 x 8 pixels that
scikit-learn bundles (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, CC BY
4.0) and writes ``sim/digits.safetensors``: weights as float16, and the images themselves, so that
using the file needs no scikit-learn.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from hdl import commandline
from host.errors import FileError

__all__ = ["PATH", "Digits", "load", "main", "train"]

PATH = Path(__file__).with_suffix(".safetensors")
HIDDEN = (1024, 1024)
EPOCHS = 40
WHITE = 16          # pixels are 0..16
_TEST_SHARE = 5     # every fifth image, in an order drawn with seed 0, is for testing

_EXAMPLES = """\
examples:
  python -m sim.digits                              train again, over the committed file
  python -m sim.digits --out /tmp/small.safetensors --hidden 256 256 --epochs 20

exit status: 0 done, 1 failed, 2 bad usage
"""


@dataclass(frozen=True)
class Digits:
    """A classifier and its images.

    Attributes
    ----------
    weights : list of float32 [N, K]
    biases : list of float32 [N]
    train, test : float32 [images, 64]
        Pixels in 0..1.
    train_labels, test_labels : uint8 [images]
    """

    weights: list
    biases: list
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    def run(self, x):
        """The float network.

        Parameters
        ----------
        x : float32 [images, 64]

        Returns
        -------
        list of float32 [images, features]
            The input of each layer, and the logits.
        """
        values = [x]
        for layer, (W, bias) in enumerate(zip(self.weights, self.biases)):
            y = values[-1] @ W.T + bias
            values.append(np.maximum(y, 0) if layer < len(self.weights) - 1 else y)
        return values


def load(path=PATH):
    """Read what :func:`train` wrote.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Digits
    """
    try:
        tensors = safetensors.numpy.load_file(path)
        layers = range(sum(name.startswith("weight.") for name in tensors))
        return Digits(
            weights=[tensors[f"weight.{i}"].astype(np.float32) for i in layers],
            biases=[tensors[f"bias.{i}"].astype(np.float32) for i in layers],
            **{name: tensors[name].astype(np.float32) / WHITE for name in ("train", "test")},
            **{name: tensors[name] for name in ("train_labels", "test_labels")})
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise FileError(f"{path}: not a file of sim.digits: {error}; "
                        "python -m sim.digits makes one") from error


def train(path=PATH, *, hidden=HIDDEN, epochs=EPOCHS, seed=0, progress=None):
    """Train the classifier and write it with its images.

    Parameters
    ----------
    path : str or os.PathLike
        Replaced if it exists.
    hidden : tuple of int
        Sizes of the hidden layers.
    epochs : int
    seed : int
        Of the weights that training starts from; the images are split the same way for all.
    progress : callable, optional
        Called as ``progress(done, total)``.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise FileError("training needs scikit-learn: pip install 'lutra[dev]'") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    test, rest = np.split(order, [len(images) // _TEST_SHARE])
    model = MLPClassifier(hidden, random_state=seed)
    for epoch in range(epochs):
        model.partial_fit((images[rest] / WHITE).astype(np.float32), labels[rest],
                          classes=np.arange(10))
        if progress is not None:
            progress(epoch + 1, epochs)
    tensors = {}
    for i, (W, bias) in enumerate(zip(model.coefs_, model.intercepts_)):
        # scikit-learn has them the other way round: [in, out].
        tensors[f"weight.{i}"] = np.ascontiguousarray(W.T, np.float16)
        tensors[f"bias.{i}"] = bias.astype(np.float16)
    for name, part in (("train", rest), ("test", test)):
        tensors[name] = images[part].astype(np.uint8)
        tensors[f"{name}_labels"] = labels[part].astype(np.uint8)
    data = safetensors.numpy.save(tensors)
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from error


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = commandline.Parser("python -m sim.digits", examples=_EXAMPLES,
                                description="Train the demo's classifier of handwritten digits.")
    parser.add_argument("--out", type=Path, default=PATH, metavar="FILE.safetensors",
                        help="where to write it (default: beside this module)")
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, metavar="SIZE",
                        help="sizes of the hidden layers (default: 1024 1024)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(default: %(default)s)")

    def work(args):
        if min(args.epochs, *args.hidden) < 1:
            parser.error("--epochs and --hidden must be at least 1")
        with commandline.progress_bar("training") as progress:
            train(args.out, hidden=tuple(args.hidden), epochs=args.epochs, progress=progress)
        digits = load(args.out)
        right = digits.run(digits.test)[-1].argmax(axis=1) == digits.test_labels
        print(f"{args.out}: {right.sum()} of {len(right)} test images right ({right.mean():.2%}), "
              f"{args.out.stat().st_size / 2**20:.2f} MiB")

    return commandline.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
