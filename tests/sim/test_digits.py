"""The demo's classifier: its committed file and its training."""

import numpy as np
import pytest
import safetensors.numpy

import host
from sim import digits


@pytest.fixture(scope="module")
def network():
    return digits.load()


def accuracy(network):
    return np.mean(network.run(network.test)[-1].argmax(axis=1) == network.test_labels)


class TestCommitted:
    def test_is_small(self):
        assert digits.PATH.stat().st_size <= 3e6

    def test_is_the_network_it_says(self, network):
        assert [W.shape for W in network.weights] == [(1024, 64), (1024, 1024), (10, 1024)]
        assert [bias.shape for bias in network.biases] == [(1024,), (1024,), (10,)]
        assert all(a.dtype == np.float32 for a in (*network.weights, *network.biases))

    def test_classifies(self, network):
        assert accuracy(network) >= 0.98

    def test_images_are_those_of_scikit_learn_each_once(self, network):
        datasets = pytest.importorskip("sklearn.datasets")
        images, labels = datasets.load_digits(return_X_y=True)
        assert len(network.test) == len(images) // 5
        ours = np.concatenate([network.test, network.train]) * 16
        with_labels = lambda x, y: sorted(map(tuple, np.column_stack([x, y]).astype(int)))
        assert with_labels(ours, np.concatenate([network.test_labels, network.train_labels])
                           ) == with_labels(images, labels)

    def test_no_test_image_is_among_those_of_training(self, network):
        assert not set(map(tuple, network.test)) & set(map(tuple, network.train))


def test_run_returns_the_input_of_each_layer(network):
    values = network.run(network.test[:3])
    assert [v.shape for v in values] == [(3, 64), (3, 1024), (3, 1024), (3, 10)]
    assert values[1].min() == 0 and values[3].min() < 0     # ReLU on all but the logits
    assert np.array_equal(
        values[1], np.maximum(values[0] @ network.weights[0].T + network.biases[0], 0))


class TestTraining:
    def test_what_it_writes_classifies(self, tmp_path, capsys):
        pytest.importorskip("sklearn")
        path = tmp_path / "small.safetensors"
        assert digits.main(["--out", str(path), "--hidden", "32", "--epochs", "30"]) == 0
        network = digits.load(path)
        assert [W.shape for W in network.weights] == [(32, 64), (10, 32)]
        assert accuracy(network) > 0.85
        assert f"({accuracy(network):.2%})" in capsys.readouterr().out

    def test_split_is_fixed(self, network, tmp_path):
        pytest.importorskip("sklearn")
        digits.train(tmp_path / "other", hidden=(4,), epochs=1)
        assert np.array_equal(digits.load(tmp_path / "other").test, network.test)

    def test_reports_progress(self, tmp_path):
        pytest.importorskip("sklearn")
        seen = []
        digits.train(tmp_path / "x", hidden=(4,), epochs=2, progress=lambda *at: seen.append(at))
        assert seen == [(1, 2), (2, 2)]

    @pytest.mark.parametrize("status, args", [
        (2, ["--epochs", "0"]), (2, ["--nonsense"]), (0, ["--help"]),
        (1, ["--epochs", "1", "--hidden", "4", "--out", "nowhere/x"])])
    def test_exit_status(self, status, args, capsys):
        pytest.importorskip("sklearn")
        assert digits.main(args) == status


@pytest.mark.parametrize("content", [b"", b"nonsense", safetensors.numpy.save({})])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(host.FileError, match=r"not a file of sim\.digits"):
        digits.load(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(host.FileError, match=r"python -m sim\.digits makes one"):
        digits.load(tmp_path / "nowhere")
