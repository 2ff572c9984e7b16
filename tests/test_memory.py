"""Memory: what a loaded model keeps, and what is looked at on the way."""

import itertools
import os
import pickle
import subprocess
import sys
import time

import pytest
import torch

import effnet_fast
from effnet_fast import memory
from effnet_fast.engine.cpu_weights import PackedWeights
from effnet_fast.errors import CheckpointError
from effnet_fast.models import create_model
from effnet_fast.network import Act, PointwiseConv

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    return effnet_fast.optimize(create_model("efficientnet_b0").eval())


@pytest.fixture
def saved(fast, tmp_path):
    path = tmp_path / "b0.pt"
    fast.save(path)
    return path


def test_weights_are_kept_packed_alone(fast):
    (part,) = fast.parts()
    tensors = [
        value
        for node in part.network.nodes
        for value in vars(node).values()
        if isinstance(value, torch.Tensor)
    ]
    assert len(tensors) > 100 and all(tensor.is_meta for tensor in tensors)
    weights = sum(tensor.numel() for tensor in tensors)
    # No padding but of channels to whole vectors.
    assert 4 * weights <= part.weight_bytes <= 1.01 * 4 * weights


def test_packed_weights_lie_one_after_another_from_a_huge_page_on():
    weights = PackedWeights()
    nodes = [
        PointwiseConv(f"y{i}", "x", torch.randn(40, 24, 1, 1), torch.randn(40), Act.SWISH)
        for i in range(3)
    ]
    taken = [weights.take(node) for node in nodes]
    assert [node.weight.shape for node in taken] == [node.weight.shape for node in nodes]
    packed = list(weights._packed.values())
    assert packed[0].data_ptr() % (2 << 20) == 0
    assert all(tensor.data_ptr() % 64 == 0 for tensor in packed)
    for before, after in itertools.pairwise(packed):
        assert 0 <= after.data_ptr() - before.data_ptr() - before.nbytes < 64
    for node, bias in zip(nodes, packed[1::2], strict=True):
        assert torch.equal(bias, node.bias)


def test_weights_larger_than_a_mapping_have_one_of_their_own():
    weights = PackedWeights()
    weight = torch.randn(3000, 3000)
    weights.take(PointwiseConv("y", "x", weight, None, Act.NONE))
    (packed,) = weights._packed.values()
    assert packed.nbytes >= weight.nbytes > 32 << 20


@linux
def test_a_loaded_model_takes_its_packed_weights(saved):
    script = f"""
import torch, effnet_fast
from effnet_fast.memory import resident_bytes
effnet_fast.load({str(saved)!r})  # whatever the first one makes for all
before = resident_bytes()
model = effnet_fast.load({str(saved)!r})
print(resident_bytes() - before, model.report.weight_bytes)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    growth, weights = map(int, out.stdout.split())
    # 21 MB; what the rest of a model takes (graph, report) is some MB. The state dict in memory
    # would be 21 MB more, and folded weights again as many.
    assert weights < growth < 1.4 * weights


def test_the_state_dict_of_a_loaded_model_is_the_originals(fast, saved):
    loaded = effnet_fast.load(saved)
    loaded(torch.randn(1, 3, 64, 64))
    expected = fast.state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_file_of_a_loaded_model_may_go_or_be_replaced(fast, saved, tmp_path):
    loaded = effnet_fast.load(saved)
    expected = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    other = tmp_path / "other"
    other.write_bytes(bytes(saved.stat().st_size))
    for change in (lambda: other.rename(saved), saved.unlink):
        change()
        found = loaded.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    loaded.refresh()


def test_a_file_written_over_is_noticed(fast, saved):
    loaded = effnet_fast.load(saved)
    copy = pickle.loads(pickle.dumps(loaded))
    x = torch.randn(1, 3, 64, 64)
    expected = loaded(x)
    with saved.open("r+b") as file:
        file.seek(saved.stat().st_size // 2)
        file.write(bytes(1000))
    os.utime(saved, ns=(0, 0))  # the clock of a file system may be coarse
    for use in (loaded.state_dict, loaded.refresh, lambda: loaded.original(x),
                lambda: loaded.save(saved)):  # fmt: skip
        with pytest.raises(CheckpointError, match="written over since the model was loaded"):
            use()
    assert torch.equal(loaded(x), expected)
    assert all(torch.equal(copy.state_dict()[n], t) for n, t in fast.state_dict().items())


@linux
def test_the_peak_is_in_the_report(fast):
    assert fast.report.peak_bytes >= fast.report.weight_bytes
    assert f"{fast.report.peak_bytes / 1e6:,.0f} MB at most" in str(fast.report)
    assert effnet_fast.optimize(
        create_model("efficientnet_b0").eval(), verify=False
    ).report.to_dict()["peak_bytes"] > 0  # fmt: skip


@linux
def test_a_peak_is_of_what_is_gone_again():
    with memory.watched() as peak:
        block = torch.ones(64 << 18)
        end = time.monotonic() + 30
        while peak.bytes < block.nbytes // 2 and time.monotonic() < end:
            time.sleep(0.001)
        assert peak.bytes >= block.nbytes // 2  # looked at while it was there
        del block
    assert peak.bytes >= 32 << 20


def test_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATM", tmp_path / "none")
    with memory.watched() as peak:
        pass
    assert peak.bytes is None


def test_exporting_still_has_the_weights(fast):
    x = torch.randn(1, 3, 64, 64)
    program = torch.export.export(fast, (x,))
    assert torch.equal(program.module()(x), fast(x))


@linux
def test_pages_that_are_no_files_are_left_alone(tmp_path):
    """They would come back as zeros."""
    path = tmp_path / "tensor"
    torch.save({"mapped": torch.ones(1 << 20)}, path)
    mapped = torch.load(path, mmap=True)["mapped"]
    own = torch.ones(1 << 20)
    memory.drop_pages([mapped, own], path.stat().st_ino)
    assert (mapped == 1).all() and (own == 1).all()


@linux
def test_pages_of_a_file_are_given_back(tmp_path):
    path = tmp_path / "tensor"
    torch.save({"mapped": torch.ones(16 << 20)}, path)
    mapped = torch.load(path, mmap=True)["mapped"]
    assert mapped.sum() == 16 << 20
    before = memory.resident_bytes()
    memory.drop_pages([mapped], path.stat().st_ino)
    assert before - memory.resident_bytes() > 60 << 20
