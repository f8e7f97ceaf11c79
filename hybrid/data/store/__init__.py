"""Tokens on disk: made once, opened in a moment, whatever their size.

A store is a folder, on this machine or `gs://…`, of

    manifest.json                  what it is: tokenizer, source, counts, shards
    train-00000.safetensors, …     documents to train on, whole ones, some 16 million tokens a file
    eval-00000.safetensors, …      documents held out

Read in this order: `shard.py` (a file), `manifest.py` (the folder), `encode.py` (text to tokens on
all cores), `build.py` (tokens into shards), `prepare.py` (a store of text of any size), `rows.py`.
"""
