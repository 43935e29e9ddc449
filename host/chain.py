"""Chains: layers whose activations never leave the device.

Between two layers the device re-quantises to int8 with static scales (see :mod:`hdl.epilogue`), so
a chain needs the scale of every intermediate: ``load(q, out="int8", out_scale=...)``.  Format
kmeans goes on to indexes (see :mod:`host.indexes`), with ``out="index"``; a pair of such layers
stands for the product of their outputs, and :class:`RMSNorm` normalises what comes before it.
"""

import weakref
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np

from hdl.isa import Buffer, Instruction, Target
from hdl.layout import MULTIPLIER_MIN, activation_order
from hdl.registers import COUNTERS
from hdl.token_units import GAIN_WORD, MEANING_BITS, RMS, STATIC_STEPS, root_gain
from host import activations
from host.arguments import positive
from host.compiler import LayerCode, matmul_program
from host.device import Bound, Layer, exclusive
from host.errors import ArgumentError, ArgumentTypeError, CapacityError
from host.indexes import Outputs, product_table
from host.matrix import shared_needs
from host.pack import Image, pack, spread
from host.progress import Meter
from host.requantization import Requantization, requantization
from host.results import collect, figures, real, result_beats

__all__ = ["Chain", "Link", "RMSNorm"]

_NOTHING = 1e-30    # a mean magnitude that fixes no scale: float32 has no quarters of its units


@dataclass(frozen=True)
class RMSNorm:
    """In a chain of format kmeans: tokens are divided by their root mean square.

    Its gain per element belongs into the columns of the matrix that follows, before it is
    quantised.  There is no epsilon: a token of zeros stays one.
    """


@dataclass(frozen=True)
class _Placed:
    """A layer on the device."""

    image: Image
    code: LayerCode


@dataclass(frozen=True)
class Link:
    """What lies between a stage of a chain and the next.

    Attributes
    ----------
    in_units : tuple of float
        Real value of a unit of its layers' activations.
    requantizations : tuple of Requantization
        Of its layers; of the last stage none.
    outputs : tuple of Outputs
        Of format kmeans: what their results become.
    meaning : int64 [256] or None
        What the next stage takes bytes, or pairs of indexes, for.
    out_unit : float
        Real value of a unit of that.
    """

    in_units: tuple[float, ...]
    requantizations: tuple[Requantization, ...]
    outputs: tuple[Outputs, ...]
    meaning: np.ndarray | None
    out_unit: float


class Chain(Bound):
    """Layers applied one after the other on the device; made by ``device.chain``.

    Parameters
    ----------
    device : Device
    layers : list of Layer, pairs of them, or RMSNorm
        All but the last with ``out="int8"`` or, of format kmeans, ``"index"``, pairs with
        ``"index"``; the last with ``out="float"``.
    in_scale : float or None
        Scale of the first layer's input, static as all of a chain: of int8, or of format kmeans
        the mean magnitude of a token's elements without its outliers.  None takes it from the
        first call that is not all zeros, with `x` as the layer's matrix stores its columns (of a
        pair the first one's), and keeps it: ``max|x| / 127``, or the mean over tokens.

    Attributes
    ----------
    stages : list of tuple of Layer
    norms : list of bool
        Which of them take normalised tokens.
    links : list of Link
        From every stage to the next, once it is placed.
    stats : dict
        As ``layer.stats``, over the whole chain.
    """

    def __init__(self, device, layers, in_scale=None):
        if not isinstance(layers, list | tuple):
            raise ArgumentTypeError("the layers of a chain must be a list, not "
                                    f"{type(layers).__name__}")
        if not layers:
            raise ArgumentError("a chain must have at least one layer, not none")
        for before, layer in pairwise([*layers, None]):
            if isinstance(before, RMSNorm) and (layer is None or isinstance(layer, RMSNorm)):
                raise ArgumentError("RMSNorm() must stand before a layer, not "
                                    + ("at the end of a chain" if layer is None else "twice"))
        self.norms = [isinstance(before, RMSNorm) for before, layer in pairwise([None, *layers])
                      if not isinstance(layer, RMSNorm)]
        self.stages = [layer if isinstance(layer, tuple) else (layer,) for layer in layers
                       if not isinstance(layer, RMSNorm)]
        # Places in the list, which is what messages count.
        self._at = [i for i, layer in enumerate(layers) if not isinstance(layer, RMSNorm)]
        self._check(device)
        self.device = device
        self.in_scale = positive("in_scale", in_scale)
        self.stats: dict = {}
        self.links: list[Link] = []
        self._placed: list[list[_Placed]] = []
        self._releases: list = []
        self._of = None, None       # images and input scale that it is placed for

    def _check(self, device):
        final, count = len(self.stages) - 1, max(self._at) + 1
        for i, (at, stage) in enumerate(zip(self._at, self.stages)):
            for layer in stage:
                if not isinstance(layer, Layer):
                    raise ArgumentTypeError(
                        f"layer {at} of the chain must be a Layer, as device.load returns it, a "
                        f"tuple of two, or RMSNorm(), not {layer!r:.80}")
                if layer.device is not device:
                    raise ArgumentError(f"layer {at} of the chain belongs to another device")
            if len(stage) not in (1, 2) or (len(stage) == 2 and i == final):
                raise ArgumentError(
                    f"layer {at} of {count} must be a layer or, before the last, a pair of "
                    f"them, whose outputs are multiplied; not {len(stage)} layers")
            kmeans = stage[0].q.format == "kmeans"
            if len(stage) > 1 and not kmeans:
                raise ArgumentError("elementwise products of layers need the index epilogue of "
                                    "format kmeans; other chains take layers only")
            wanted = ["float"] if i == final else ["index"] if len(stage) > 1 else \
                ["int8", "index"] if kmeans else ["int8"]
            for layer in stage:
                if layer.out not in wanted:
                    raise ArgumentError(f"layer {at} of {count} must have "
                                        f"out={' or '.join(map(repr, wanted))}, not {layer.out!r}")
            if len({layer.q.shape for layer in stage}) > 1:
                raise ArgumentError("layers whose outputs are multiplied must have the same shape, "
                                    f"not {' and '.join(str(layer.q.shape) for layer in stage)}")
        formats = {layer.q.format for layer in self.layers}
        if len(formats) > 1:
            raise ArgumentError("the layers of a chain must have one format, not "
                                + " and ".join(sorted(formats)))
        for at, stage in zip(self._at, self.stages):
            if not stage[0].q.chains:
                raise ArgumentError(
                    f"layer {at} of the chain must have side='weight', not "
                    f"{stage[0].q.config.side!r}: activations in two precisions are made of int16, "
                    "which nothing on the device gives")
        each = [layer.q.needs(layer.q.token_bits) for layer in self.layers]
        self._needs = shared_needs(each)
        for name, values in self._needs.items():
            if not values:
                needed = dict.fromkeys(fields[name] for fields in each if name in fields)
                raise ArgumentError(
                    f"the layers of a chain must run on one engine; these need {name}="
                    f"{' and '.join(map(str, needed))}: quantise them with equal parameters")
        for i, (a, b) in enumerate(pairwise(self.stages)):
            if a[0].q.shape[0] != b[0].q.shape[1]:
                raise ArgumentError(
                    f"layer {self._at[i]} gives {a[0].q.shape[0]} outputs, layer "
                    f"{self._at[i + 1]} takes {b[0].q.shape[1]} inputs; they must be equal")
        self._encoded = formats == {"kmeans"}
        if any(self.norms) and not self._encoded:
            raise ArgumentError("RMSNorm needs the tables of format kmeans; other chains take "
                                "layers only")

    @property
    def layers(self):
        """list of Layer: all of them, in the order of their programs."""
        return [layer for stage in self.stages for layer in stage]

    def _place(self, meter, in_scale):
        """Have the chain's images on the device, for that scale of its input."""
        device = self.device
        for layer in self.layers:
            device._adapt(layer.q, layer.q.token_bits, self._needs)
        engine = device.engine
        if not engine.epilogue:
            raise CapacityError(f"{device.url} is built without the epilogue that chains need: "
                                "build it with epilogue=True, or take a larger size")
        if self._of == (device.images, in_scale):
            return
        wanted = device.images, in_scale
        units = tuple(in_scale * layer.q.activation_step if self._encoded else in_scale
                      for layer in self.stages[0])
        meaning: np.ndarray | None = None       # of the stage's input, where that is indexes
        links, images = [], []
        for i, (stage, following) in enumerate(zip_longest(self.stages, self.stages[1:])):
            try:
                link = self._link(stage, units, following, following and self.norms[i + 1])
            except CapacityError as error:
                raise CapacityError(f"layer {self._at[i]} of the chain, whose input has units of "
                                    f"{units[0]:g}: {error}") from None
            images.append([self._pack(layer.q, engine, following, link, n, meaning, self.norms[i])
                           for n, layer in enumerate(stage)])
            links.append(link)
            meaning, units = link.meaning, (link.out_unit,) * len(following or ())
        for release in self._releases:
            release()
        device._give_back()
        self._placed, self._releases, self._of = [], [], (None, None)
        for stage in images:
            for image in stage:
                meter.expect(device.images.missing(image))
        for stage in images:
            self._placed.append([])
            for image in stage:
                resident = device.images.place(image, meter)
                self._releases.append(
                    weakref.finalize(self, device._gone.append, (device.images, resident)))
                self._placed[-1].append(
                    _Placed(image, LayerCode.at(resident.address, image)))
        self.links = links
        self._of = wanted

    def _link(self, stage, units, following, norm):
        """From a stage, whose inputs have these units, to the following or, if None, the end.

        `norm`: what the following takes is normalised.
        """
        if following is None:
            return Link(units, (), (), None, 0.0)
        factors = tuple(
            self._requantize(layer, unit, following if n == len(stage) - 1 else None, norm)
            for n, (layer, unit) in enumerate(zip(stage, units)))
        if not self._encoded:
            return Link(units, factors, (), None, stage[0].out_scale)
        centroids = 2**max(layer.q.config.activation_bits for layer in following)
        outputs = [Outputs.of(layer.out_scale, layer.activation,
                              centroids=centroids if layer.out == "index" else None)
                   for layer in stage]
        if len(outputs) == 1:
            meaning, unit = outputs[0].value_table, outputs[0].unit
        else:
            meaning, unit = product_table(outputs[0], outputs[1])
        return Link(units, factors, tuple(outputs), meaning, 1 / RMS if norm else unit)

    def _pack(self, q, engine, following, link, n, meaning, norm):
        """A layer's image: its results in the order in which the following one loads them."""
        tables = {} if meaning is None else {Buffer.VALUE_TABLE: meaning}
        if meaning is not None and norm:
            tables[Buffer.ACTIVATION_CODEBOOK] = [0] * GAIN_WORD + [root_gain(q.shape[1])]
        if following is None:
            return pack(q, engine, tables=tables)
        factor = link.requantizations[n]
        order = _stream_order(following[0].q, engine)
        exists, rows = order >= 0, np.maximum(order, 0)
        parameters = {
            "bias": np.where(exists, factor.bias[rows] // q.bias_unit, 0),
            "multiplier": np.where(exists, factor.multiplier[rows], MULTIPLIER_MIN),
            "shift": np.where(exists, factor.shift[rows], 0)}
        if self._encoded:
            tables[Buffer.BYTE_TABLE] = link.outputs[n].byte_table
        return pack(q, engine, parameters, order, tables)

    def _requantize(self, layer, in_unit, following, norm):
        """Integers of a layer; with the scales that the `following` layer wants of its input."""
        q, engine = layer.q, self.device.engine
        unit = q.row_scale.astype(np.float64) * in_unit
        fold = np.ones(len(unit))
        if following is not None:
            fold = self._fold(layer, following, fold, norm)
        factor = unit / layer.out_scale * fold
        values = np.zeros(len(unit)) if layer.bias is None else layer.bias
        bias = values / np.where(unit == 0, 1, unit)
        if self._encoded:
            # Rows of zeros have codes too, of centroids that need not be zero: their factor is 0.
            lost = np.flatnonzero((unit == 0) & (values != 0))
            if len(lost):
                raise CapacityError(
                    "between layers of format kmeans a row of zeros must have no bias, for nothing "
                    f"adds it behind the multiplier: row {lost[0]} has one")
            bound, in_tile = q.row_bound * 2**MEANING_BITS, q.row_bound * 2**MEANING_BITS
        else:
            # A row of zeros gives its bias and has no unit: take one in which the result is exact.
            zero = ~q.scales.any(axis=1) & (factor > 0)
            factor = np.where(zero, 2.0**-20, factor)
            steps = np.clip(np.rint(values / layer.out_scale * fold), -127, 127)
            bias = np.where(zero, steps * 2**20, bias)
            bound = q.row_bound * q.activation_bound(8)
            # The bias joins the sums of the last K tile, before they reach the accumulators.
            positions, padded = spread(q.shape[1], q.config.group_size, engine)
            in_tile = q.row_bounds(positions >= padded - engine.tile_k) * q.activation_bound(8)
        return requantization(factor, bias, q.bias_unit, engine.coarse_base, bound=bound,
                              room=2 ** (engine.column_bits - 1) - 1 - in_tile)

    def _fold(self, layer, following, fold, norm):
        """``x'[j] = x[permutation[j]] * input_scale[j]``, folded into the rows of `layer`."""
        scales = [f.q.input_scale for f in following]
        orders = [f.q.permutation for f in following]
        for name, arrays in (("permutation", orders), ("input_scale", scales)):
            if not all(np.array_equal(a, b) for a, b in pairwise(
                    [np.zeros(0) if a is None else a for a in arrays])):
                raise ArgumentError(f"layers that take the same outputs must have the same {name}")
        if scales[0] is None:
            return fold
        if (scales[0] < 0).any():
            raise ArgumentError("between layers of a chain an input_scale must not be negative, "
                                f"got {scales[0].min():g}")
        if self._encoded and (norm or layer.activation not in (None, "relu")
                              or (scales[0] <= 0).any()):
            raise ArgumentError(
                "an input_scale works after activation None or 'relu' and where it is positive, "
                "for indexes of all columns mean the same; not after "
                f"{'RMSNorm' if norm else repr(layer.activation)}")
        fold[slice(None) if orders[0] is None else orders[0]] = scales[0]
        return fold

    def _tokens(self, x):
        """Integer tokens of every layer of the first stage, and the scale of the input."""
        found, tokens = self.in_scale, []
        if self.norms[0]:
            x = normalised(x)
        inputs = [activations.stored(x, layer.q) for layer in self.stages[0]]
        if found is None:
            found = (_mean_magnitude(inputs[0], self.stages[0][0].q) if self._encoded else
                     float(np.abs(inputs[0]).max(initial=0) / np.float32(127)) or None)
        for layer, stored in zip(self.stages[0], inputs):
            scale = found or 1.0        # zeros have any
            largest = 127
            if self._encoded:
                scale, largest = scale * layer.q.activation_step / STATIC_STEPS, 32767
            scale = max(np.float32(scale), np.finfo(np.float32).tiny)
            with np.errstate(over="ignore"):
                tokens.append(np.clip(np.rint(stored / scale), -largest, largest)
                              .astype(np.int16))
        return tokens, found

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
        last = self.stages[-1][0]
        flat, lead = activations.check(x, self.stages[0][0].q.shape[1])
        tokens, found = self._tokens(flat)
        self._place(meter, found or 1.0)
        self.in_scale = found           # not of a call that was refused
        device, engine = self.device, self.device.engine
        final = self._placed[-1][0].image
        groups = -(-len(flat) // engine.rows)
        # Beats of a group before every stage, and of its results; all start at multiples of rows.
        sizes = [stage[0].image.k_tiles * engine.tile_beats for stage in self._placed]
        sizes[0] *= len(tokens)
        results = sum(result_beats(steps, engine) for _, steps in final.tiles)
        total = dict.fromkeys(COUNTERS, 0)
        acc = np.zeros((len(flat), last.q.shape[0]), np.int64)
        # Beside the program, of which more groups share parts.
        program = len(self._program([0] * (len(sizes) + 1), 1, sizes, results))
        per_group = sum(sizes) + results + program
        spare = engine.rows * (len(sizes) + 2) + 16
        room = max(0, device.memory.room(per_group + spare) - spare)
        batch = min(groups, room // per_group)
        if groups and not batch:
            raise CapacityError(f"one group of {engine.rows} tokens needs {per_group} beats for "
                                f"the chain's activations and program; {room} are free")
        meter.expect(groups * (sizes[0] + results) * engine.beat_bytes)
        for start in range(0, groups, max(1, batch)):
            count = min(batch, groups - start)
            with device.memory.hold(count * (sum(sizes) + results) + engine.rows) as base:
                base = -(-base // engine.rows) * engine.rows
                areas = [base + count * sum(sizes[:i]) for i in range(len(sizes) + 1)]
                chosen = [slice((start + g) * engine.rows, (start + g + 1) * engine.rows)
                          for g in range(count)]
                data = np.concatenate([
                    activations.arrange(xq[t], placed.image.positions, placed.image.padded_k,
                                        engine)
                    for xq, placed in zip(tokens, self._placed[0]) for t in chosen])
                device.write_beats(areas[0], data, meter=meter)
                for name, value in device.run(self._program(areas, count, sizes, results)).items():
                    total[name] += value
                beats = device.read_beats(areas[-1], count * results, meter)
                for g, t in enumerate(chosen):
                    acc[t] = collect(beats[g * results:(g + 1) * results], final.tiles, engine,
                                     last.q.shape[0])[:len(acc[t])]
        layers = self.layers
        images = [placed.image for stage in self._placed for placed in stage]
        macs = [int(np.prod(layer.q.shape)) for layer in layers]
        ideal = sum(n / engine.peak_macs(layer.q.planes * layer.q.codebooks)
                    for n, layer in zip(macs, layers))
        padding = 1 - sum(macs) / sum(n / (1 - image.padding) for n, image in zip(macs, images))
        self.stats = figures(total, engine, len(flat), sum(macs), sum(macs) / ideal, padding)
        return real(acc, last, self.links[-1].in_units[0]).reshape(*lead, last.q.shape[0])

    def _program(self, areas, count, sizes, results):
        """Instructions for `count` groups of tokens, stage after stage."""
        program = []
        for i, placed in enumerate(self._placed):
            final = i == len(self._placed) - 1
            size = sizes[i] // (len(placed) if i == 0 else 1)
            step = results if final else sizes[i + 1]
            indexes = len(self.stages[i - 1]) if i and self._encoded else 0
            for n, (layer, part) in enumerate(zip(self.stages[i], placed)):
                first = areas[i] + (n * count * size if i == 0 else 0)
                addresses = [(first + g * size, areas[i + 1] + g * step) for g in range(count)]
                program += matmul_program(
                    self.device.engine, part.code, addresses,
                    target=Target.ACCUMULATORS if final else Target.INT8,
                    relu=not self._encoded and layer.activation == "relu" and not final,
                    high=n == 1, static=self._encoded, indexes=indexes,
                    norm=bool(i and self.norms[i]))
                program.append(Instruction.make("FENCE"))
        return program


def normalised(x):
    """Tokens over their root mean squares, float32 [M, K]; zeros stay zeros."""
    x = x.astype(np.float64)
    root = np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    return (x / np.where(root > 0, root, 1)).astype(np.float32)


def _mean_magnitude(stored, q):
    """Of the elements of tokens that are no outliers, else of all; None if there is nothing."""
    xq, _ = activations.quantize_tokens(stored, q.token_bits)
    for counted in (~q.outliers(xq), np.ones(xq.shape, bool)):
        means = np.abs(stored.astype(np.float64)).sum(axis=1, where=counted) \
            / np.maximum(1, counted.sum(axis=1))
        if means.max(initial=0) > _NOTHING:
            return float(np.float32(means[means > 0].mean()))
    return None


def _stream_order(q, engine):
    """For every element that LOAD reads of a token: which output of the layer before it is, or -1.
    """
    K = q.shape[1]
    positions, padded = spread(K, q.config.group_size, engine)
    column = np.full(padded, -1)
    column[positions] = np.arange(K) if q.permutation is None else q.permutation
    return column.reshape(-1, engine.tile_k)[:, activation_order(engine)].reshape(-1)
