"""The corpus that the data benchmarks read: JSON lines of text drawn from the standard library.

python -m benchmarks.corpus FOLDER [--megabytes=105]

A document is a run of 10 to 600 words of one of the library's files, so its words, spaces and
lengths are those of real text; 105 MB are some 90 000 documents. Beside it stands an 8K BPE.
"""

import argparse
import json
import pathlib
import random
import re

from hybrid.data.config import DataConfig
from hybrid.data.sources import documents

VOCAB_SIZE = 8192


def write(folder: pathlib.Path, megabytes: float, num_files: int = 1) -> None:
    """Writes `text-0.jsonl`, … and `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [found.text.decode("utf-8", "replace") for found in documents(DataConfig(), "all")]
    words = [re.findall(r"\s*\S+", text) for text in texts]
    words = [each for each in words if len(each) > 20]
    draw = random.Random(0)
    for number in range(num_files):
        size = 0
        with open(folder / f"text-{number}.jsonl", "w") as file:
            while size < megabytes * 1e6 / num_files:
                source = draw.choice(words)
                length = draw.randrange(10, 230)
                start = draw.randrange(max(1, len(source) - length))
                line = json.dumps({"text": "".join(source[start : start + length])}) + "\n"
                size += file.write(line)
    _write_tokenizer(folder / "tokenizer.json", texts)


def _write_tokenizer(path: pathlib.Path, texts: list[str]) -> None:
    import tokenizers as hf

    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--megabytes", type=float, default=105.0)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.megabytes)


if __name__ == "__main__":
    main()
