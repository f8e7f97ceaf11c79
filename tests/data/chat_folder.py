"""A small folder as Hugging Face has it, with a tokenizer and the chat format of the Gemma family.

The templates are written here after the format's description: turns between `<start_of_turn>ROLE`
and `<end_of_turn>`, the assistant called `model`, contents without white space around them.
"""

import json
import pathlib

import tokenizers as hf

from hybrid.data import pipeline

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
PAD, EOS, BOS, UNKNOWN, START, END = range(6)

_TURNS = """
{%- for message in turns -%}
  {%- if (message.role == 'user') != (loop.index0 is even) -%}
    {{ raise_exception('roles must alternate') }}
  {%- endif -%}
  {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
  {{ '<start_of_turn>' ~ role ~ '\\n' -}}
  {{ prefix if loop.first -}}
  {{ (message['content'] | trim) ~ '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
# The second generation has no system turn; the third puts it before the first user's words.
GEMMA_2 = (
    """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif -%}
{%- set turns, prefix = messages, '' -%}"""
    + _TURNS
)
GEMMA_3 = (
    """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
  {%- set prefix = messages[0]['content'] ~ '\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set prefix = '' -%}
  {%- set turns = messages -%}
{%- endif -%}"""
    + _TURNS
)


def tokenizer() -> hf.Tokenizer:
    """BPE over characters with ▁ for a space, and bytes for what it lacks, as the family has it."""
    backend = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = hf.normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = hf.pre_tokenizers.Split(" ", "merged_with_previous")
    decoders = hf.decoders
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    # As in the family's vocabulary, no token holds a new line beside anything else.
    texts = [
        "user",
        "model",
        "What is it?",
        "It is what it is.",
        "the cat and the  hat ate",
        "\n\n",
    ]
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = hf.trainers.BpeTrainer(vocab_size=340, special_tokens=names, show_progress=False)
    backend.train_from_iterator(texts * 4, trainer)
    # The trainer makes bytes special too; read back, only the first ones are.
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIALS)]
    backend = hf.Tokenizer.from_str(json.dumps(spec))
    template = hf.processors.TemplateProcessing
    backend.post_processor = template(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return backend


def write(folder: pathlib.Path, template: str = GEMMA_3) -> pathlib.Path:
    """Writes the folder and returns it."""
    folder.mkdir(exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    names = zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIALS, strict=False)
    values = dict(names) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, behind one of the system."""
    roles = "user", "assistant"
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def lines(folder: pathlib.Path, rows: list, name: str = "x.jsonl") -> str:
    """Writes rows as JSON lines and returns the file's path."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def open_rows(config, context_length=16, vocab_size=512):
    return pipeline.open_rows(config, context_length=context_length, seed=0, vocab_size=vocab_size)


def held_out(config, vocab_size=512):
    return pipeline.open_held_out(config, vocab_size=vocab_size)
