"""Weights that stay on a device for the next host."""

import hashlib
import random
from types import SimpleNamespace

import numpy as np
import pytest

import host
import sim.golden
from hdl.registers import Space
from host.device import Device
from host.directory import Images, decode, encode
from host.link import Transport
from host.progress import Meter
from sim.device import open_sim
from tests.conftest import random_matrix
from tests.hdl.test_core import SMALL

UART = "sim:ulx3s?size=tiny&link=uart"


class Board(Transport):
    """A simulated device as a board is one: it keeps its memory from host to host.

    Attributes
    ----------
    sent : dict
        Bytes written, by space.
    fail_after : int or None
        So many bytes later the line breaks.
    """

    def __init__(self, url):
        self.inner = open_sim(url)
        self.name = self.inner.name
        self.wait = self.inner.wait
        self.fail_after = None

    def host(self):
        self.sent = dict.fromkeys(Space, 0)
        return Device(self)

    def read(self, address, nbytes):
        return self.inner.read(address, nbytes)

    def write(self, address, data):
        self.sent[Space(address >> 62)] += len(data)
        if self.fail_after is not None:
            self.fail_after -= len(data)
            if self.fail_after < 0:
                self.inner.write(address, data[:len(data) // 8 * 4])
                raise host.LinkError("the line broke")
        self.inner.write(address, data)

    def close(self):
        pass

    def directory(self):
        """The directory as it lies in the memory."""
        return self.inner.model.data.reshape(-1)[-1024:]


@pytest.fixture(scope="module")
def simulated():
    board = Board(SMALL)
    yield board
    board.inner.close()


@pytest.fixture
def board(simulated):
    simulated.inner.model.data[:] = 0xA5
    simulated.fail_after = None
    return simulated


def matrix(seed, N=40, K=200):
    return random_matrix(np.random.default_rng(seed), N, K, 3, 64, "asymmetric")


def check(layer, tokens=2):
    x = np.random.default_rng(0).integers(-127, 128, (tokens, layer.q.shape[1]))
    assert np.array_equal(layer.integers(x), sim.golden.integers(layer.q, x))


def load(board, *seeds):
    """A new host loads matrices, checks and leaves; returns the bytes of weights that it sent."""
    with board.host() as device:
        for seed in seeds:
            check(device.load(matrix(seed)))
        # Sidebands are sent with images and with nothing else.
        return board.sent[Space.SIDEBAND]


def test_second_host_sends_nothing(board):
    once = load(board, 0)
    assert once > 0 and load(board, 0) == 0
    assert load(board, 1, 0, 1) == once
    with board.host() as device:
        seen = []
        layer = device.load(matrix(0), progress=lambda *at: seen.append(at))
        assert not seen and sum(board.sent.values()) == 0
        check(layer)


@pytest.mark.timeout(240)
def test_second_host_sends_nothing_over_a_uart():
    board = Board(UART)
    q = random_matrix(np.random.default_rng(0), 20, 140, 2, 128, "symmetric")
    statistics = board.inner._client.statistics
    sent, seen = [], []
    for _ in range(2):
        with board.host() as device:
            before = statistics.bytes_sent
            layer = device.load(q, progress=lambda *at: seen.append(at))
            sent.append(statistics.bytes_sent - before)
            check(layer)
    image = layer._image
    size = len(image.data) * device.link_bytes
    assert sent[0] > size and seen[-1] == (size, size)
    assert sent[1] < 300        # requests that read samples
    board.inner.close()


def test_layers_share_and_free_their_image(board):
    with board.host() as device:
        a, b = device.load(matrix(0)), device.load(matrix(0))
        a.free()
        check(b)
        b.free()
        with pytest.raises(host.DeviceError, match="freed"):
            check(b)
        before = board.sent[Space.SIDEBAND]
        check(device.load(matrix(0)))
        assert board.sent[Space.SIDEBAND] == before
        device.forget()     # nobody uses it
        check(device.load(matrix(0)))
        assert board.sent[Space.SIDEBAND] == 2 * before
    with board.host() as device:
        device.forget()
    assert load(board, 0) == before


def test_chain_finds_its_images(board):
    rng = np.random.default_rng(0)
    W = [rng.normal(0, 1 / 8, (64, 96)), rng.normal(0, 1 / 8, (10, 64))]
    q = [host.quantize(w.astype(np.float32), bits=4, group_size=None) for w in W]
    x = rng.normal(0, 1, (3, 96)).astype(np.float32)
    sent, seen = [], []
    for _ in range(2):
        with board.host() as device:
            chain = device.chain([device.load(q[0], out="int8", out_scale=0.05),
                                  device.load(q[1])])
            y = chain(x, progress=lambda *at: seen.append(at))
            assert np.array_equal(y, sim.golden.chain(chain, x))
            sent.append(board.sent[Space.SIDEBAND])
            assert seen[-1][0] == seen[-1][1]
    assert sent[0] > 0 and sent[1] == 0


@pytest.mark.parametrize("at", [0, 5, 8, 13, 25, 40, 500, 1023])
def test_damaged_directory_is_ignored(board, at):
    once = load(board, 0)
    board.directory()[at] ^= 1
    assert load(board, 0) == once
    assert load(board, 0) == 0


def test_other_build_is_ignored(board, monkeypatch):
    once = load(board, 0)
    block = bytes(board.directory())
    with board.host() as device:
        entries = decode(block, device.digest, device.images._first)
        assert len(entries) == 1
        for digest, start in ((device.digest ^ 1, device.images._first), (device.digest, 64)):
            board.directory()[:] = np.frombuffer(encode(entries, digest, start, 1024), np.uint8)
            assert load(board, 0) == once


def test_overwritten_image_is_sent_again(board):
    """By something that knows of no directories."""
    once = load(board, 0, 1)
    board.inner.model.data[:30] = 0x5A
    assert load(board, 0, 1) == once // 2
    assert load(board, 0, 1) == 0


def test_different_image_at_the_same_place(board):
    once = load(board, 0)
    with board.host() as device:
        device.memory.claim(760, device.memory.beats - 760)
        big = device.load(matrix(2, N=60, K=260))
        check(big)
        assert big._code.tiles[0][0] == 0 and board.sent[Space.SIDEBAND] > once
    assert load(board, 0) == once


def test_interrupted_upload_leaves_no_entry(board):
    once = load(board, 0)
    total = sum(board.sent.values())
    for fail_after in (0, 100, once // 2, once, total - 1):
        board.inner.model.data[:] = 0
        assert load(board, 1) == once
        with board.host() as device:
            before = device.memory.largest()
            board.fail_after = fail_after
            with pytest.raises(host.LinkError):
                check(device.load(matrix(0)))
            board.fail_after = None
            device.forget()
            assert device.memory.largest() >= before, "the memory was given back"
            check(device.load(matrix(0)))       # the same host goes on
        board.inner.model.data[:] = 0
        with board.host() as device:
            board.fail_after = fail_after
            with pytest.raises(host.LinkError):
                check(device.load(matrix(0)))
        board.fail_after = None
        assert load(board, 0) in (once, 0) and load(board, 0, 1) == once


def test_too_large_for_the_memory_names_sizes(board):
    with board.host() as device:
        beats = device.memory.beats
        assert beats == device.memory_beats - 1024 // device.engine.beat_bytes
        device.memory.claim(200, beats - 200)
        with pytest.raises(host.CapacityError, match=rf"takes? 244 beats of 16 .* 200 of {beats}"):
            device.load(matrix(0))


def test_memory_that_is_fresh_has_no_directory(devices):
    device = devices(SMALL)
    assert device.memory.beats == device.memory_beats


def test_progress_must_be_callable(devices):
    with pytest.raises(host.ArgumentTypeError, match="progress must be callable or None, got 3"):
        devices(SMALL).load(matrix(0), progress=3)


def test_progress_of_a_call(devices):
    layer = devices(SMALL).load(matrix(0, N=600, K=300))
    seen = []
    x = np.zeros((40, 300), np.float32)
    layer(x, progress=lambda *at: seen.append(at))
    done, total = zip(*seen)
    assert len(seen) > 5 and list(done) == sorted(done) and set(total) == {done[-1]}


class Crash(Exception):
    """The host is gone."""


class Model:
    """Just the memory of a device, which looks at every write whether the directory is true."""

    BEATS, BEAT = 512, 32

    def __init__(self):
        self.engine = SimpleNamespace(beat_bytes=self.BEAT)
        self.transport = SimpleNamespace(fresh=False)
        self.digest, self.memory_beats, self.link_bytes = 0x12345678, self.BEATS, self.BEAT + 4
        self.data = np.random.default_rng(0).integers(0, 256, (self.BEATS, self.BEAT), np.uint8)
        self.side = np.zeros((self.BEATS, 1), np.uint32)
        self.crash = None
        self.fails = lambda: False

    def read_beats(self, address, count):
        return self.data[address:address + count].copy()

    def write_beats(self, address, data, side=None, meter=None):
        for i, beat in enumerate(data):
            if self.crash is not None:
                self.crash -= 1
                if self.crash < 0:
                    raise Crash
            self.data[address + i] = beat
            if side is not None:
                self.side[address + i] = side[i]
            self.check()
            if self.fails():
                raise host.LinkError("nobody knows what was written")

    def check(self):
        size = self.BEATS * self.BEAT // 64
        start = self.BEATS - size // self.BEAT
        self.listed = decode(self.data[start:].tobytes(), self.digest, start)
        for digest, first, beats in self.listed:
            span = slice(first, first + beats)
            assert digest_of(self.data[span], self.side[span]) == digest


def digest_of(data, side):
    return hashlib.sha256(data.tobytes() + side.tobytes()).digest()[:16]


def image_of(seed):
    rng = np.random.default_rng(seed)
    beats = int(rng.integers(1, 150))
    data = rng.integers(0, 256, (beats, Model.BEAT), np.uint8)
    side = rng.integers(0, 2**32, (beats, 1), np.uint32)
    return SimpleNamespace(data=data, side=side, digest=digest_of(data, side))


@pytest.mark.parametrize("seed", range(20))
def test_directory_never_lies(seed):
    """Whatever hosts do and wherever they are interrupted."""
    rng = random.Random(seed)
    model, found = Model(), 0
    for _ in range(30):
        model.crash = None
        images, used = Images(model), []
        found += len(images._images)
        model.crash = rng.choice((None, rng.randrange(400)))
        model.fails = lambda: rng.random() < seed % 2 / 50
        try:
            for _ in range(rng.randrange(12)):
                action = rng.randrange(4)
                if action < 2:
                    try:
                        used.append(images.place(image_of(rng.randrange(12)), Meter()))
                    except host.CapacityError:
                        assert used
                    except host.LinkError:
                        pass
                elif action == 2 and used:
                    images.release(used.pop(rng.randrange(len(used))))
                else:
                    try:
                        with images.memory.hold(rng.randrange(1, 100)) as address:
                            model.write_beats(address, np.full((3, Model.BEAT), 7, np.uint8))
                    except (host.CapacityError, host.LinkError):
                        pass
        except Crash:
            pass
    assert found > 20


def test_least_recently_used_goes_first():
    model = Model()
    images = Images(model)
    each = [image_of(seed) for seed in range(40)]
    each = [SimpleNamespace(data=i.data[:1], side=i.side[:1], digest=digest_of(
        i.data[:1], i.side[:1])) for i in each]
    place = lambda image: images.place(image, Meter())
    a, b, c = map(place, each[:3])
    for resident in (b, a, c):
        images.release(resident)
    images.release(place(each[1]))
    assert [first for _, first, _ in model.listed] == [0, 2, 4]
    with images.memory.hold(images.memory.beats - 4):       # behind what was used last
        assert list(images._images) == [each[1].digest]
    # More images than entries: the directory has the last.
    for image in each[3:]:
        place(image)
    assert [digest for digest, *_ in model.listed] == [i.digest for i in each[-7:]]
