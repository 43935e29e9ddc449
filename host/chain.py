"""Chains: layers whose activations never leave the device.

Between two layers the device re-quantises to int8 with static scales (see :mod:`hdl.epilogue`), so
a chain needs the scale of every intermediate: ``load(q, out="int8", out_scale=...)``.
"""

import weakref
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hdl.isa import Instruction, Target
from hdl.layout import (
    COARSE_BASE,
    COARSE_STEP,
    FINE_SHIFT,
    MULTIPLIER_MIN,
    PARAMETER_FIELDS,
    activation_order,
)
from hdl.registers import COUNTERS
from host import activations
from host.arguments import positive
from host.compiler import LayerCode, matmul_program
from host.device import Bound, Layer, exclusive
from host.errors import ArgumentError, ArgumentTypeError, CapacityError
from host.pack import pack, spread
from host.progress import Meter
from host.results import collect, figures, real, result_beats

__all__ = ["Chain", "Requantization", "requantization"]
MULTIPLIER_BITS = PARAMETER_FIELDS["multiplier"][1]
SHIFTS = 2 ** PARAMETER_FIELDS["shift"][1]


@dataclass(frozen=True)
class Requantization:
    """Integers with which a device turns a layer's accumulators into int8.

    ``y = clip(rint(((acc + bias) >> (10 + 6 * shift)) * multiplier / 2**21), -127, 127)``

    Attributes
    ----------
    bias, multiplier, shift : int64 [N]
    """

    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray


def requantization(factor, bias, planes):
    """Integers for real factors.

    Parameters
    ----------
    factor : float [N]
        Steps of the result per accumulator unit.
    bias : float [N]
        In accumulator units.
    planes : int
        Bit planes of a weight; the bias becomes a multiple of ``2**(planes - 1)``.

    Raises
    ------
    CapacityError
        A factor or bias is outside what the device's integers hold.
    """
    factor = np.asarray(factor, np.float64)
    # The smallest shift that leaves the multiplier enough bits.
    exponent = np.frexp(factor)[1]          # factor in [2**(e-1), 2**e)
    spare = FINE_SHIFT + COARSE_BASE - MULTIPLIER_MIN.bit_length() + exponent
    shift = np.maximum(0, -(spare // COARSE_STEP))
    multiplier = np.rint(np.ldexp(factor, FINE_SHIFT + COARSE_BASE + COARSE_STEP * shift))
    bad = ~(factor > 0) | (multiplier > 2**MULTIPLIER_BITS) | (shift >= SHIFTS)
    if bad.any():
        raise CapacityError("a re-quantisation factor must be in 2**-38..2**-14, not "
                            f"{factor[bad][0]:g}: choose another out_scale")
    multiplier = np.minimum(multiplier, 2**MULTIPLIER_BITS - 1)
    unit = 2 ** (planes - 1)
    bias = np.rint(np.asarray(bias, np.float64) / unit)
    if (np.abs(bias) >= 2**47).any():
        raise CapacityError(f"a bias must stay below 2**47 times {unit} accumulator units")
    return Requantization(bias.astype(np.int64) * unit, multiplier.astype(np.int64),
                          shift.astype(np.int64))


class Chain(Bound):
    """Layers applied one after the other on the device; made by ``device.chain``.

    Parameters
    ----------
    device : Device
    layers : list of Layer
        All but the last with ``out="int8"``; the last with ``out="float"``.
    in_scale : float or None
        Scale of the first layer's int8 input.  None takes ``max|x| / 127`` of the first call that
        is not all zeros, with `x` as the layer's matrix stores its columns, and keeps it.

    Attributes
    ----------
    requantizations : list of Requantization
        Of every layer but the last.
    stats : dict
        As ``layer.stats``, over the whole chain.
    """

    def __init__(self, device, layers, in_scale=None):
        if not isinstance(layers, list | tuple):
            raise ArgumentTypeError("the layers of a chain must be a list, not "
                                    f"{type(layers).__name__}")
        if not layers:
            raise ArgumentError("a chain must have at least one layer, not none")
        for i, layer in enumerate(layers):
            if isinstance(layer, tuple):
                raise ArgumentError("elementwise products of layers need the index epilogue of "
                                    "format kmeans; other chains take layers only")
            if not isinstance(layer, Layer):
                raise ArgumentTypeError(f"layer {i} of the chain must be a Layer, as device.load "
                                        f"returns it, not {type(layer).__name__}")
            if layer.device is not device:
                raise ArgumentError(f"layer {i} of the chain belongs to another device")
            wanted = "float" if i == len(layers) - 1 else "int8"
            if layer.out != wanted:
                raise ArgumentError(f"layer {i} of {len(layers)} must have out={wanted!r}, not "
                                    f"{layer.out!r}")
        for i, (a, b) in enumerate(pairwise(layers)):
            if a.q.shape[0] != b.q.shape[1]:
                raise ArgumentError(f"layer {i} gives {a.q.shape[0]} outputs, layer {i + 1} takes "
                                    f"{b.q.shape[1]} inputs; they must be equal")
        self.device = device
        self.layers = list(layers)
        self.in_scale = positive("in_scale", in_scale)
        self.stats: dict = {}
        self.requantizations: list[Requantization] = []
        self._placed: list = []
        self._releases: list = []
        self._of = None, None       # images and input scale that it is placed for

    def _place(self, meter, in_scale):
        """Have the chain's images on the device, for that scale of its input."""
        device = self.device
        for layer in self.layers:
            device._adapt(layer.q, 8)
        if not device.engine.epilogue:
            raise CapacityError(f"{device.url} is built without the epilogue that chains need")
        if self._of == (device.images, in_scale):
            return
        wanted = device.images, in_scale
        engine = device.engine
        requantizations, images = [], []
        for i, layer in enumerate(self.layers):
            q = layer.q
            parameters, order = None, None
            if i < len(self.layers) - 1:
                factor, following = self._requantize(i, in_scale), self.layers[i + 1].q
                requantizations.append(factor)
                in_scale = layer.out_scale
                # The device writes results in order; this order is the one LOAD expects.
                order = _stream_order(following, engine)
                real, rows = order >= 0, np.maximum(order, 0)
                unit = 2 ** (q.planes - 1)
                parameters = {
                    "bias": np.where(real, factor.bias[rows] // unit, 0),
                    "multiplier": np.where(real, factor.multiplier[rows], MULTIPLIER_MIN),
                    "shift": np.where(real, factor.shift[rows], 0)}
            images.append(pack(q, engine, parameters, order))
        for release in self._releases:
            release()
        device._give_back()
        self._placed, self._releases, self._of = [], [], (None, None)
        for image in images:
            meter.expect(device.images.missing(image))
        for image in images:
            resident = device.images.place(image, meter)
            self._releases.append(
                weakref.finalize(self, device._gone.append, (device.images, resident)))
            self._placed.append((image, LayerCode.at(resident.address, image)))
        self.requantizations = requantizations
        self._of = wanted

    def _requantize(self, i, in_scale):
        layer, following = self.layers[i], self.layers[i + 1].q
        unit = layer.q.row_scale.astype(np.float64) * in_scale
        fold = np.ones(len(unit))
        if following.input_scale is not None:
            # x'[j] = x[permutation[j]] * input_scale[j], folded into this layer's rows.
            order = slice(None) if following.permutation is None else following.permutation
            fold[order] = following.input_scale
        factor = unit / layer.out_scale * fold
        values = np.zeros(len(unit)) if layer.bias is None else layer.bias
        bias = values / unit
        # A row of zeros gives its bias and has no unit: take one in which the result is exact.
        zero = ~layer.q.scales.any(axis=1) & (factor > 0)
        factor[zero] = 2.0**-20
        bias[zero] = np.clip(np.rint(values / layer.out_scale * fold), -127, 127)[zero] * 2**20
        return requantization(factor, bias, layer.q.planes)

    @exclusive
    def __call__(self, x, progress=None):
        """Apply the chain.

        Parameters
        ----------
        x : float32 or float16 [..., K]
        progress : callable, optional
            Called as ``progress(done, total)`` with bytes: of the weights in the first call, of
            activations and results in every one.

        Returns
        -------
        float32 [..., N]
        """
        meter = Meter(progress)
        first, last = self.layers[0], self.layers[-1]
        flat, lead = activations.check(x, first.q.shape[1])
        stored = activations.stored(flat, first.q)
        found = self.in_scale
        if found is None:
            found = float(np.abs(stored).max(initial=0) / np.float32(127)) or None
        in_scale = found or 1.0         # zeros have any scale
        with np.errstate(over="ignore"):
            xq = np.clip(np.rint(stored / np.float32(in_scale)), -127, 127).astype(np.int16)
        self._place(meter, in_scale)
        self.in_scale = found           # not of a call that was refused
        device, engine = self.device, self.device.engine
        images = [image for image, _ in self._placed]
        groups = -(-len(xq) // engine.rows)
        # Beats of a group before every layer, and of its results; all start at multiples of rows.
        sizes = [image.k_tiles * engine.tile_beats for image in images]
        results = sum(result_beats(steps, engine) for _, steps in images[-1].tiles)
        total = dict.fromkeys(COUNTERS, 0)
        acc = np.zeros((len(xq), last.q.shape[0]), np.int64)
        per_group = sum(sizes) + results + 16 * len(images)
        spare = engine.rows * (len(sizes) + 2)
        room = device.memory.room(per_group + spare) - spare
        batch = min(groups, room // per_group)
        if groups and not batch:
            raise CapacityError(f"one group of {engine.rows} tokens needs {sum(sizes) + results} "
                                f"beats for the chain's activations; {max(room, 0)} are free")
        meter.expect(groups * (sizes[0] + results) * engine.beat_bytes)
        for start in range(0, groups, max(1, batch)):
            count = min(batch, groups - start)
            with device.memory.hold(count * (sum(sizes) + results) + engine.rows) as base:
                base = -(-base // engine.rows) * engine.rows
                areas = [base + count * sum(sizes[:i]) for i in range(len(sizes) + 1)]
                tokens = [slice((start + g) * engine.rows, (start + g + 1) * engine.rows)
                          for g in range(count)]
                data = np.concatenate([
                    activations.arrange(xq[t], images[0].positions, images[0].padded_k, engine)
                    for t in tokens])
                device.write_beats(areas[0], data, meter=meter)
                program = []
                for i, (_, code) in enumerate(self._placed):
                    final = i == len(self._placed) - 1
                    size = results if final else sizes[i + 1]
                    addresses = [(areas[i] + g * sizes[i], areas[i + 1] + g * size)
                                 for g in range(count)]
                    target = Target.ACCUMULATORS if final else Target.INT8
                    program += matmul_program(engine, code, addresses, target=target,
                                              relu=self.layers[i].activation == "relu")
                    program.append(Instruction.make("FENCE"))
                for name, value in device.run(program).items():
                    total[name] += value
                beats = device.read_beats(areas[-1], count * results, meter)
                for g, t in enumerate(tokens):
                    acc[t] = collect(beats[g * results:(g + 1) * results], images[-1].tiles, engine,
                                     last.q.shape[0])[:len(acc[t])]
        macs = [int(np.prod(layer.q.shape)) for layer in self.layers]
        ideal = sum(n / engine.peak_macs(layer.q.planes * layer.q.codebooks)
                    for n, layer in zip(macs, self.layers))
        padding = 1 - sum(macs) / sum(n / (1 - image.padding) for n, image in zip(macs, images))
        self.stats = figures(total, engine, len(xq), sum(macs), sum(macs) / ideal, padding)
        scale = in_scale if first is last else self.layers[-2].out_scale
        return real(acc, last, scale).reshape(*lead, last.q.shape[0])


def _stream_order(q, engine):
    """For every byte that LOAD reads of a token: which output of the layer before it is, or -1."""
    K = q.shape[1]
    positions, padded = spread(K, q.config.group_size, engine)
    column = np.full(padded, -1)
    column[positions] = np.arange(K) if q.permutation is None else q.permutation
    return column.reshape(-1, engine.tile_k)[:, activation_order(engine)].reshape(-1)
