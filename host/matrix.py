"""What every quantised matrix has in common: its meaning, its size, its digest and its file."""

import dataclasses
import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import numpy as np
import safetensors
import safetensors.numpy

from host.errors import ArgumentError, ArgumentTypeError, FileError, LutraError

__all__ = ["QuantizedMatrix", "load", "shared_needs", "unmet"]

FILE_VERSION = "1"
_FLOAT32_LIMIT = float(np.finfo(np.float32).max)
_ROW_BLOCK = 512        # rows handled at a time, so that float64 copies stay small


def row_blocks(rows):
    """Slices that cover ``range(rows)`` in blocks of at most 512."""
    return [slice(i, min(i + _ROW_BLOCK, rows)) for i in range(0, rows, _ROW_BLOCK)]


def check_array(name, array, dtype, shape, meaning):
    """Refuse an `array` that is not NumPy of exactly this dtype and shape, and freeze it.

    Parameters
    ----------
    name, meaning : str
        The array's name and what its axes are, e.g. ``"[N, K]"``, for the message.
    array : ndarray
    dtype : dtype_like
    shape : tuple of int

    Returns
    -------
    ndarray
        A read-only, C-contiguous copy: nobody else can change it.
    """
    dtype = np.dtype(dtype)
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise ArgumentError(f"{name} must be a NumPy array of {dtype}, got "
                            f"{getattr(array, 'dtype', type(array).__name__)}")
    if array.shape != tuple(shape):
        raise ArgumentError(f"{name} must have shape {meaning} = {tuple(shape)}, "
                            f"got {array.shape}")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ArgumentError(f"{name} must be finite, got "
                            f"{array[~np.isfinite(array)][0]} among its values")
    array = np.array(array, order="C")
    array.flags.writeable = False
    return array


def path_of(path):
    """A path as text, for messages and for libraries that take nothing else."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise ArgumentTypeError("path must be a str, bytes or os.PathLike, not "
                                f"{path!r:.80}") from None


def pack_bits(values, bits):
    """Pack integers as bit planes, eight values of one plane per byte.

    Parameters
    ----------
    values : ndarray of uint8
        Integers below ``2**bits``, any shape.
    bits : int

    Returns
    -------
    ndarray of uint8, [bits, ceil(values.size / 8)]
        Plane 0 holds the least significant bits; in a byte the first value is the top bit.
    """
    return np.stack([np.packbits(values >> i & 1) for i in range(bits)])


def unpack_bits(planes, shape):
    """Undo :func:`pack_bits`.

    Parameters
    ----------
    planes : ndarray of uint8, [bits, ceil(prod(shape) / 8)]
    shape : tuple of int

    Returns
    -------
    ndarray of uint8, `shape`
    """
    values = np.zeros(math.prod(shape), np.uint8)
    for i, plane in enumerate(planes):
        values |= np.unpackbits(plane, count=values.size) << i
    return values.reshape(shape)


def shared_needs(needs):
    """What an engine must have for several matrices.

    Parameters
    ----------
    needs : list of dict
        Of :meth:`QuantizedMatrix.needs`.

    Returns
    -------
    dict
        :class:`hdl.config.EngineConfig` field -> tuple of the values that suit all of them, best
        first; empty where there is none.
    """
    shared = {}
    for name in dict.fromkeys(name for fields in needs for name in fields):
        legal = [fields[name] if isinstance(fields[name], tuple) else (fields[name],)
                 for fields in needs if name in fields]
        common = [value for value in legal[0] if all(value in values for values in legal)]
        common.sort(key=lambda value: sum(values.index(value) for values in legal))
        shared[name] = tuple(common)
    return shared


def unmet(engine, needs):
    """Fields in which an engine is not what :func:`shared_needs` gave: built and needed, or None.
    """
    wrong = [name for name, values in needs.items() if getattr(engine, name) not in values]
    if not wrong:
        return None
    return (", ".join(f"{name}={getattr(engine, name)}" for name in wrong),
            ", ".join(f"{name}={' or '.join(map(str, sorted(needs[name])))}" for name in wrong))


class QuantizedMatrix(ABC):
    """A quantised weight matrix; immutable.

    A format derives from this class and registers itself in :mod:`host.formats`.

    Attributes
    ----------
    format : str
        Name of the format.
    config : frozen dataclass
        The format's configuration.
    shape : tuple of int
        ``(N, K)``: output features, input features.
    permutation : ndarray of int64, [K], or None
        Stored column ``j`` multiplies activation ``permutation[j]``.
    input_scale : ndarray of float32, [K], or None
        Factor of the activation of each stored column:
        ``x' = x[permutation] * input_scale``, evaluated in float32.
    output_scale : float or None
        Step of int8 outputs when the result stays on the device and the caller names no other.
    """

    format: ClassVar[str]

    def __init__(self, config, shape, permutation=None, input_scale=None, output_scale=None):
        self.config = config
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise ArgumentError(f"the shape of a matrix must be (N, K), got {shape!r:.80}")
        self.shape = N, K = tuple(shape)
        if N < 1 or K < 1:
            raise ArgumentError(f"a matrix must have at least one row and column, got {N} x {K}")
        if permutation is not None:
            permutation = check_array("permutation", permutation, np.int64, (K,), "[K]")
            if not np.array_equal(np.sort(permutation), np.arange(K)):
                raise ArgumentError(f"permutation must hold each of 0..{K - 1} exactly once")
        if input_scale is not None:
            input_scale = check_array("input_scale", input_scale, np.float32, (K,), "[K]")
        if isinstance(output_scale, bool) or not isinstance(
                output_scale, int | float | np.integer | np.floating | None):
            raise ArgumentTypeError("output_scale must be a real number or None, "
                                    f"got {output_scale!r:.80}")
        if output_scale is not None and not 0 < output_scale <= _FLOAT32_LIMIT:
            raise ArgumentError("output_scale must be a positive float32 or None, "
                                f"got {output_scale!r}")
        self.permutation = permutation
        self.input_scale = input_scale
        self.output_scale = None if output_scale is None else float(output_scale)

    def __setstate__(self, state):
        # Of pickle and copy, which make arrays that can be written to.
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def _check_magnitude(self, largest):
        """Refuse weights whose largest representable magnitude overflows float32."""
        if self.input_scale is not None:
            largest = largest * float(np.abs(self.input_scale).max())
        if largest > _FLOAT32_LIMIT:
            raise ArgumentError(f"weights must stay within float32 (up to {_FLOAT32_LIMIT:.3g}), "
                                f"but the largest code and scale give {largest:.3g}")

    # What the packer and the figures ask of a matrix.

    planes = 1
    """Bit planes of a code, each a gather of its own."""
    @property
    def bias_unit(self):
        """int: what a unit counts that is added to the first plane of a column."""
        return 2**(self.planes - 1)

    codebooks = 1
    """Codebooks whose entries add up, each a gather of its own."""
    token_bits = 8
    """Bits of the integers that a call makes of its activations: 8 or 16."""
    chains = True
    """Whether a layer can be part of a chain: the device makes its activations from results."""
    zeros: np.ndarray | None = None
    """Zero points [N, groups], where the format has them."""

    @cached_property
    def row_bound(self):
        """int: the largest sum of the magnitudes of an output row's integer weights."""
        return int(self.row_bounds().max())

    def row_bounds(self, columns=slice(None)):
        """Sums of the magnitudes of every output row's integer weights in some columns: int64 [N].
        """
        N, K = self.shape
        step = max(1, 2**22 // K)
        return np.concatenate([np.abs(self.integer_weights(slice(n, n + step)))[:, columns].sum(
            axis=1) for n in range(0, N, step)])

    def activation_bound(self, bits):
        """Largest magnitude that multiplies a weight, for activations of `bits` bits."""
        return 127 if bits == 8 else 32768

    def token_units(self, xq, scale):
        """Real value of the activations' unit in accumulators, of every token.

        Parameters
        ----------
        xq : integers [M, K]
        scale : float32 [M]
            Real value of a unit of `xq`.

        Returns
        -------
        float32 [M]
        """
        return scale

    @abstractmethod
    def integer_weights(self, rows=slice(None)):
        """What the device multiplies by.

        Parameters
        ----------
        rows : slice, optional

        Returns
        -------
        ndarray of int64, [rows, K]
            Stored column order.
        """

    @abstractmethod
    def needs(self, bits):
        """Parameters that an engine of the format must have for activations of `bits` bits.

        Returns
        -------
        dict
            :class:`hdl.config.EngineConfig` field -> value, or a tuple of values, best first.
        """

    # What a format has to provide.

    @classmethod
    @abstractmethod
    def quantize(cls, W, config, *, calibration, seed, output_scale, progress):
        """Quantise checked arrays; :func:`host.quantizer.quantize` is the public entry.

        Parameters
        ----------
        W : ndarray of float16, bfloat16, float32 or float64, [N, K]
        config : frozen dataclass
        calibration : ndarray of a floating dtype, [tokens, K], or None
        seed : int
        output_scale : float or None
        progress : callable
            ``progress(done, total)``.
        """

    @classmethod
    @abstractmethod
    def from_codes(cls, **arrays):
        """Import codes; keyword-only parameters, listed in error messages."""

    @abstractmethod
    def _arrays(self):
        """The format's own arrays by name; an absent one is None."""

    def refusal(self, engine):
        """Why an engine that has what :meth:`needs` says cannot run the matrix, or None."""
        return None

    row_scale: np.ndarray
    """float32 [N]: the real value of one unit of :meth:`integer_weights`."""

    def _weights(self, rows):
        """Real weights of a slice of rows: float64 [rows, K], stored column order."""
        return self.integer_weights(rows) * self.row_scale[rows, None].astype(np.float64)

    @abstractmethod
    def _stored_bits(self):
        """Bits of everything but `permutation` and `input_scale`."""

    @property
    @abstractmethod
    def code_bits_per_weight(self):
        """float: stored bits per weight of the codes alone."""

    @classmethod
    @abstractmethod
    def _file_layout(cls, config, shape):
        """Tensors of the file: name -> (dtype, shape)."""

    @abstractmethod
    def _to_file(self):
        """Tensors of the file as ``_file_layout`` says: name -> ndarray."""

    @classmethod
    @abstractmethod
    def _from_file(cls, config, shape, tensors, **common):
        """The matrix of those tensors; `common` goes to the constructor."""

    # What every format shares.

    def dequantize(self):
        """The matrix that this quantised matrix stands for.

        Returns
        -------
        ndarray of float32, [N, K]
            Original column order, `input_scale` multiplied in; evaluated in float64 and
            rounded once.
        """
        W = np.empty(self.shape, np.float32)
        columns = slice(None) if self.permutation is None else self.permutation
        for rows in row_blocks(self.shape[0]):
            weights = self._weights(rows)
            W[rows, columns] = weights if self.input_scale is None else weights * self.input_scale
        return W

    @property
    def bits_per_weight(self):
        """float: everything stored (codes, scales, ...) over N * K."""
        N, K = self.shape
        bits = self._stored_bits()
        if self.input_scale is not None:
            bits += 32 * K
        if self.permutation is not None:
            bits += (K - 1).bit_length() * K
        return bits / (N * K)

    @cached_property
    def digest(self):
        """str: 16 hexadecimal digits of a SHA-256 over everything that :meth:`save` writes."""
        head = [self.format, dataclasses.asdict(self.config), self.shape, self.output_scale]
        sha = hashlib.sha256(json.dumps(head).encode())
        arrays = self._arrays() | {"permutation": self.permutation,
                                   "input_scale": self.input_scale}
        for name, array in arrays.items():
            if array is not None:
                sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
                sha.update(array)
        return sha.hexdigest()[:16]

    def save(self, path):
        """Write the matrix as a safetensors file; codes are packed to their bits.

        Parameters
        ----------
        path : str, bytes or os.PathLike
            Replaced if it exists.

        Raises
        ------
        FileError
            The file cannot be written.
        """
        name = path_of(path)
        metadata = {"lutra": FILE_VERSION, "format": self.format,
                    "config": json.dumps(dataclasses.asdict(self.config)),
                    "shape": json.dumps(self.shape), "digest": self.digest}
        if self.output_scale is not None:
            metadata["output_scale"] = json.dumps(self.output_scale)
        tensors = self._to_file()
        if self.permutation is not None:
            tensors["permutation"] = self.permutation.astype(np.uint32)
        if self.input_scale is not None:
            tensors["input_scale"] = self.input_scale
        data = safetensors.numpy.save(tensors, metadata)
        try:
            with open(name, "wb") as file:
                file.write(data)
        except (OSError, ValueError) as error:      # ValueError: "\0" in the path
            raise FileError(f"{name}: cannot be written: {error}") from error

    def __repr__(self):
        N, K = self.shape
        return (f"<{type(self).__name__} {N}x{K} {self.config}, "
                f"{self.bits_per_weight:.3f} bits/weight>")


def load(path):
    """Read a quantised matrix that :meth:`QuantizedMatrix.save` wrote.

    Parameters
    ----------
    path : str, bytes or os.PathLike

    Returns
    -------
    QuantizedMatrix
        Equal to the saved one, digest included.

    Raises
    ------
    FileError
        If the file cannot be read, is of another kind or version, or contradicts itself.
    """
    # Each format imports the base class from this module.
    from host.formats import FORMATS

    name = path_of(path)
    try:
        with safetensors.safe_open(name, "np") as file:
            metadata = file.metadata() or {}
            if "lutra" not in metadata:
                raise FileError("not a Lutra matrix: its metadata lack 'lutra'")
            if metadata["lutra"] != FILE_VERSION:
                raise FileError(f"its version must be {FILE_VERSION!r}, "
                                f"got {metadata['lutra']!r}")
            if metadata.get("format") not in FORMATS:
                raise FileError(f"its format must be one of {', '.join(FORMATS)}, "
                                f"got {metadata.get('format')!r}")
            kind = FORMATS[metadata["format"]]
            config, shape, output_scale = _parse(metadata, kind.config)
            layout = kind.matrix._file_layout(config, shape)
            tensors = _read(file, layout, shape[1])
            permutation = tensors.pop("permutation", None)
            matrix = kind.matrix._from_file(
                config, shape, tensors, output_scale=output_scale,
                permutation=None if permutation is None else permutation.astype(np.int64),
                input_scale=tensors.pop("input_scale", None))
            if metadata.get("digest", matrix.digest) != matrix.digest:
                raise FileError(f"its content is damaged: digest {matrix.digest}, "
                                f"but {metadata['digest']} was written")
            return matrix
    except LutraError as error:
        raise FileError(f"{name}: {error}") from error
    except RecursionError:
        raise FileError(f"{name}: its metadata are nested too deeply") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(f"{name}: not a readable safetensors file: {error}") from error


def _parse(metadata, config_class):
    """Configuration, shape and output scale of a file's metadata."""
    values = {}
    for key in ("config", "shape", "output_scale"):
        try:
            values[key] = json.loads(metadata.get(key, "null"))
        except ValueError as error:
            raise FileError(f"metadata {key!r} must be JSON, got {metadata[key]!r:.80}") from error
    shape, output_scale = values["shape"], values["output_scale"]
    if (not isinstance(shape, list) or len(shape) != 2
            or not all(type(size) is int and size >= 1 for size in shape)):
        raise FileError(f"metadata 'shape' must be two sizes [N, K], got {shape!r:.80}")
    if output_scale is not None and not isinstance(output_scale, int | float):
        raise FileError(f"metadata 'output_scale' must be a number, got {output_scale!r:.80}")
    names = {field.name for field in dataclasses.fields(config_class)}
    if not isinstance(values["config"], dict) or set(values["config"]) != names:
        raise FileError(f"metadata 'config' must have the fields {', '.join(sorted(names))}, "
                        f"got {values['config']!r:.80}")
    return config_class(**values["config"]), tuple(shape), output_scale


def _read(file, layout, K):
    """Read the tensors of `layout` and the optional ones, checked before they are read."""
    present = set(file.keys())
    optional = {"permutation": (np.uint32, (K,)), "input_scale": (np.float32, (K,))}
    layout = layout | {name: want for name, want in optional.items() if name in present}
    if missing := sorted(set(layout) - present):
        raise FileError(f"tensor {missing[0]!r} is missing")
    if extra := sorted(present - set(layout)):
        raise FileError(f"tensor {extra[0]!r} is not part of the format; "
                        f"legal are {', '.join(sorted(set(layout) | set(optional)))}")
    for name, (dtype, shape) in layout.items():
        dtype = np.dtype(dtype)
        want = f"{dtype.kind.upper()}{8 * dtype.itemsize}", tuple(shape)
        got = file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())
        if got != want:
            raise FileError(f"tensor {name!r} must be {want[0]} {want[1]}, got {got[0]} {got[1]}")
    return {name: file.get_tensor(name) for name in layout}
