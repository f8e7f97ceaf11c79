"""Stores in an object store: the same bits as on a disk, read by ranges, and nothing torn."""

import dataclasses

import numpy as np
import pytest
import stores

from hybrid import prepare as command
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.store import manifest
from hybrid.process.files import as_path

pytestmark = pytest.mark.usefixtures("quick_lease")
REMOTE = as_path("gs://bucket/stores/s")


@pytest.fixture(scope="module")
def remote(source, object_store):
    """The store in the bucket, stopped once on the way."""

    def stop(progress):
        if progress.num_bytes > 4000:
            raise Stop

    with pytest.raises(Stop):
        stores.make(source, REMOTE, progress=stop)
    assert not (REMOTE / "manifest.json").exists()
    stores.make(source, REMOTE)
    return REMOTE


class Stop(BaseException):
    pass


def test_a_remote_store_has_the_bits_of_a_local_one(store, remote):
    assert stores.content(remote) == stores.content(store)
    manifest.read(remote, "--output").verify()


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_its_rows_and_held_out_documents_are_the_same(store, remote, packing, tmp_path):
    config = dataclasses.replace(stores.of_store(store), packing=packing, cache_dir=str(tmp_path))
    far = dataclasses.replace(config, paths=(str(remote),))
    one, other = stores.open_rows(config), stores.open_rows(far)
    assert one.fingerprint == other.fingerprint
    for r in range(one.num_rows):
        np.testing.assert_equal(one.row(r), other.row(r))
    here, there = (pipeline.open_held_out(c, vocab_size=259) for c in (config, far))
    assert here.fingerprint == there.fingerprint
    for tokens, others in zip(here.tokens, there.tokens, strict=True):
        np.testing.assert_array_equal(tokens, others)


def test_opening_asks_for_no_shard_and_a_row_for_ranges_of_one(remote, object_store):
    before = len(object_store.requests)
    rows = stores.open_rows(stores.of_store(remote))
    asked = object_store.requests[before:]
    assert not any("safetensors" in request for request in asked), asked
    before = len(object_store.requests)
    rows.row(0)
    asked = object_store.requests[before:]
    names = {request.partition("train-")[2][:5] for request in asked}
    assert len(names) == 1, asked


def test_wrong_input_leaves_nothing_in_the_bucket(tmp_path, source, remote, object_store):
    (tmp_path / "x.jsonl").write_text('{"text": "abc"}\n' * 50 + '{"txt": 1}\n')
    config = dataclasses.replace(source, paths=(f"{tmp_path}/x.jsonl",))
    before = object_store.names()
    with pytest.raises(ConfigError, match=r"data\.text_field: .*line 51 has no"):
        stores.make(config, as_path("gs://bucket/stores/wrong"), shard_tokens=50)
    assert sorted(object_store.names()) == before
    with pytest.raises(ConfigError, match=r"--output: holds a store"):
        stores.make(config, remote)
    with pytest.raises(ConfigError, match=r"data\.paths: holds no finished store"):
        stores.open_rows(stores.of_store("gs://bucket/stores/none"))
    with pytest.raises(ConfigError, match=r"data\.paths: .*no such bucket|there is no bucket"):
        stores.open_rows(stores.of_store("gs://nowhere/stores/none"))
    assert object_store.names() == before


@pytest.mark.parametrize("bucket", ["read-only", "private", "nowhere"])
def test_a_bucket_that_takes_nothing_is_refused_in_one_line(source, object_store, bucket, capsys):
    words = ["--config=configs/tiny.py", f"--output=gs://{bucket}/s", "--workers=0"]
    words += ["--config.data.source=jsonl", f"--config.data.paths={source.paths[0]}"]
    assert command.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ")
    assert f"gs://{bucket}/s" in said.err


def test_a_damaged_remote_shard_is_named(remote, object_store):
    name = "stores/s/train-00001.safetensors"
    whole = object_store.objects[name]["data"]
    object_store.put(name, whole[:2500] + bytes([whole[2500] ^ 1]) + whole[2501:])
    rows = stores.open_rows(stores.of_store(remote))
    with pytest.raises(ConfigError, match=r"shard gs://bucket/.*train-00001\.safetensors is dam"):
        list(map(rows.row, range(rows.num_rows)))
    object_store.put(name, whole)
