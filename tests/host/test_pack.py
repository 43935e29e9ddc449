"""Images are packed once."""

import gc
import weakref

import numpy as np
import pytest

import host.pack
from hdl.config import EngineConfig
from host.pack import packed
from tests.conftest import random_matrix

ENGINE = EngineConfig(lanes=32)


def matrix(seed=0):
    return random_matrix(np.random.default_rng(seed), 20, 200, 2, 64, "symmetric")


def test_an_image_is_packed_once_per_matrix_and_engine(monkeypatch):
    q, calls = matrix(), []
    pack = host.pack.pack
    monkeypatch.setattr(host.pack, "pack", lambda *args: calls.append(args) or pack(*args))
    wide = ENGINE.replace(lanes=64)
    assert packed(q, ENGINE) is packed(q, EngineConfig(lanes=32))
    assert packed(q, wide).data.shape != packed(q, ENGINE).data.shape
    assert len(calls) == 2


def test_digest_is_of_the_content():
    assert packed(matrix(), ENGINE).digest == packed(matrix(), ENGINE).digest
    assert packed(matrix(1), ENGINE).digest != packed(matrix(), ENGINE).digest


def test_images_go_with_their_matrix():
    q = matrix()
    image = weakref.ref(packed(q, ENGINE))
    assert image() is not None
    del q
    gc.collect()
    assert image() is None


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "ternary"])
def test_bound_of_the_rows(scheme):
    q = random_matrix(np.random.default_rng(0), 30, 100, 2, 32, scheme)
    assert q.row_bound == np.abs(q.integer_weights()).sum(axis=1).max()
    assert isinstance(q.row_bound, int)
