"""Texts, stores and conversations that several files of tests read."""

import pytest
import stores
from data import chat_folder

from hybrid.data.config import DataConfig


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return stores.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    """The folder of the store of `source`."""
    folder = tmp_path_factory.mktemp("store") / "s"
    stores.make(source, folder)
    return folder


@pytest.fixture(scope="module")
def chat_home(tmp_path_factory):
    """A folder with a tokenizer and a chat template."""
    return chat_folder.write(tmp_path_factory.mktemp("chat") / "folder")


@pytest.fixture
def talk(chat_home, tmp_path):
    """Makes the config of conversations, a line each."""

    def config(*conversations, **keys):
        path = chat_folder.lines(tmp_path, [{"messages": messages} for messages in conversations])
        keys = {"tokenizer": str(chat_home), "cache_dir": str(tmp_path / "cache")} | keys
        source = {"source": "jsonl", "paths": (path,), "eval_paths": (path,)}
        return DataConfig(messages_field="messages", **source, **keys)

    return config
