"""Question answering: the document that answers among shuffled others; any answer counts.

The documents come from a local file in one of two public formats, which is not ours to ship:

    SQuAD 2.0  {"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers":
               [{"text": …}], "is_impossible": …}]}]}]}; distractors of the same article come first
    HotpotQA   [{"question": …, "answer": …, "context": [[title, [sentence, …]], …]}]; all of a
               question's own documents are there

Source: RULER (2404.06654), sec. 3 and its scripts/data/synthetic/qa.py.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from hybrid.config import ConfigError
from hybrid.evaluation.retrieval.sample import Request, Sample

TOKENS_TO_GENERATE = 32
_ORDER = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
PROMPT = (
    _ORDER + "\n\nThe following are given documents.\n\n{context}\n\n" + _ORDER + "\n\n"
    "Question: {question}"
)
ANSWER_PREFIX = " Answer:"
DOCUMENT = "Document {number}:\n{text}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its answers, and documents by their index.

    Attributes:
      gold: those that are always there.
      near: distractors of the same article, which are taken first.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a file and all of its documents, each once, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def sample(request: Request, size: int) -> Sample:
    """The sample of `size` documents beyond those that are always there."""
    held: Questions = request.questions
    question = held.questions[request.index % len(held.questions)]
    drawn = [*question.gold, *_distractors(request, question, held, size)]
    order = request.draws("order").distinct(len(drawn), 0, len(drawn)).tolist()
    texts = [held.documents[drawn[place]] for place in order]
    context = "\n\n".join(
        DOCUMENT.format(number=number, text=text) for number, text in enumerate(texts, start=1)
    )
    prompt = PROMPT.format(context=context, question=question.text)
    return Sample(prompt, ANSWER_PREFIX, question.answers, TOKENS_TO_GENERATE)


def most(request: Request) -> int:
    """The most documents beyond those that are always there."""
    held: Questions = request.questions
    return len(held.documents) - len(held.questions[request.index % len(held.questions)].gold)


def _distractors(request: Request, question: Question, held: Questions, size: int) -> list[int]:
    draws = request.draws("distractors")
    own = {*question.gold, *question.near}
    near = [question.near[i] for i in draws.distinct(len(question.near), 0, len(question.near))]
    if size <= len(near):
        return near[:size]
    far = [place for place in range(len(held.documents)) if place not in own]
    count = min(size - len(near), len(far))
    return near + [far[i] for i in draws.distinct(count, 0, len(far)).tolist()]


# --- Files -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def read_squad(path: str) -> Questions:
    """The answerable questions of a SQuAD file.  Raises: ConfigError for another form."""
    return _read("eval.retrieval.squad_path", path, _squad, "SQuAD 2.0")


@functools.lru_cache(maxsize=2)
def read_hotpotqa(path: str) -> Questions:
    """The questions of a HotpotQA file.  Raises: ConfigError for another form."""
    return _read("eval.retrieval.hotpotqa_path", path, _hotpotqa, "HotpotQA")


def _read(key: str, path: str, parse: Callable[[Any], Questions], form: str) -> Questions:
    try:
        found = parse(json.loads(pathlib.Path(path).read_bytes()))
    except OSError as error:
        raise ConfigError(key, f"can't be read ({error.strerror})", path) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is not in the form of {form} ({type(error).__name__}: {error})"
        raise ConfigError(key, problem, path, "a JSON file of that form") from None
    if not found.questions:
        raise ConfigError(key, "holds no question with an answer", path)
    return found


def _squad(values: Any) -> Questions:
    articles = [[_text(p, "context") for p in article["paragraphs"]] for article in values["data"]]
    documents = sorted({text for article in articles for text in article})
    place = {text: index for index, text in enumerate(documents)}
    questions = []
    for article, texts in zip(values["data"], articles, strict=True):
        own = list(dict.fromkeys(place[text] for text in texts))
        for paragraph in article["paragraphs"]:
            gold = place[paragraph["context"]]
            near = tuple(index for index in own if index != gold)
            questions += [
                Question(_text(entry, "question"), answers, (gold,), near)
                for entry in paragraph["qas"]
                if not entry.get("is_impossible", False)
                and (answers := tuple(_text(answer, "text") for answer in entry["answers"]))
            ]
    return Questions(tuple(questions), tuple(documents))


def _hotpotqa(values: Any) -> Questions:
    owns = [_contexts(entry) for entry in values]
    documents = sorted({text for own in owns for text in own})
    place = {text: index for index, text in enumerate(documents)}
    questions = tuple(
        Question(
            _text(entry, "question"),
            (_text(entry, "answer"),),
            tuple(dict.fromkeys(place[text] for text in own)),
        )
        for entry, own in zip(values, owns, strict=True)
    )
    return Questions(questions, tuple(documents))


def _contexts(entry: Any) -> list[str]:
    """The documents of a HotpotQA question."""
    if not isinstance(entry["context"], list) or not entry["context"]:
        raise ValueError(f"context must be a list of documents, got {entry['context']!r:.60}")
    found = []
    for title, sentences in entry["context"]:
        if not isinstance(sentences, list):
            raise ValueError(f"sentences must be a list, got {sentences!r:.60}")
        text = f"{_text({'title': title}, 'title')}\n{''.join(sentences)}"
        found.append(_text({"sentences": text}, "sentences"))  # there may be none
    return found


def _text(values: Any, name: str) -> str:
    """A text that is not empty and can be encoded.  Raises: ValueError."""
    text = values[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be a text that is not empty, got {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a surrogate pair at {error.start}") from None
    return text
