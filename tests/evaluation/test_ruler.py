"""RULER's tasks: the same bits for a seed, lengths that are kept, answers that are there."""

import collections
import hashlib
import json
import re

import pytest

from hybrid import config as config_lib
from hybrid.config import ConfigError
from hybrid.data.config import DataConfig
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.evaluation.retrieval import haystack, niah, questions, ruler, scores, vocabulary
from hybrid.evaluation.retrieval.sample import Request, TooShort, largest

ESSAY = tuple(f"Sentence {i} tells of {'very ' * (i % 7)}little." for i in range(500))
LENGTHS = (2048, 4096, 9000)


def squad(num_articles=6, num_paragraphs=5):
    """A small file in the form of SQuAD 2.0."""

    def paragraph(article, number):
        text = f"In town {article}-{number} lives mayor M{article}{number}. " + "It rains. " * 6
        answers = [{"text": f"M{article}{number}"}, {"text": f"mayor M{article}{number}"}]
        asked = [
            {"question": f"Who is mayor of {article}-{number}?", "answers": answers},
            {"question": "Nobody can tell?", "answers": [], "is_impossible": True},
        ]
        return {"context": text, "qas": asked}

    articles = [
        {"paragraphs": [paragraph(a, p) for p in range(num_paragraphs)]}
        for a in range(num_articles)
    ]
    return {"version": "v2.0", "data": articles}


def hotpotqa(num=8):
    """A small file in the form of HotpotQA."""

    def entry(i):
        context = [[f"Title {i}.{j}", [f"Fact {i}.{j}.", " It is so."]] for j in range(3)]
        return {"question": f"What is {i}?", "answer": f"Fact {i}.2", "context": context}

    return [entry(i) for i in range(num)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "squad.json").write_text(json.dumps(squad(60, 12)))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa(200)))
    return {
        "squad": questions.read_squad(str(folder / "squad.json")),
        "hotpotqa": questions.read_hotpotqa(str(folder / "hotpotqa.json")),
    }


def num_bytes(sample):
    return 1 + len(ByteTokenizer().encode(sample.prompt + sample.answer_prefix))  # BOS


def made(name, files, length=4096, index=0, seed=42):
    task = ruler.TASKS[name]
    request = Request(f"{name} {seed}", index, length, ESSAY, files.get(task.reads))
    return ruler.sample(task, request, num_bytes)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ruler.TASKS)
def test_a_sample_fits_its_length_and_is_near_it(name, length, files):
    sample = made(name, files, length)
    total = num_bytes(sample) + sample.tokens_to_generate
    unit = 200 if name not in ("qa_1", "cwe") else 400  # the bytes of one step of its size
    assert length - unit < total <= length


@pytest.mark.parametrize("name", ruler.TASKS)
def test_the_answers_are_in_the_prompt_and_the_question_is_at_its_end(name, files):
    for index in range(3):
        sample = made(name, files, index=index)
        assert len(sample.references) == len(set(sample.references))
        for reference in sample.references:
            assert reference in sample.prompt
        assert sample.prompt.endswith(("?", "."))
        assert "{" not in sample.prompt + sample.answer_prefix


# Digests of (prompt, prefix, references) at 4096 bytes, samples 0 and 1 of seed 42.
DIGESTS = {
    "niah_single_1": "90ae4346d532f7f4",
    "niah_single_2": "ad06fdef4ea63819",
    "niah_single_3": "86110457badc372e",
    "niah_multikey_1": "580d9644afc5f9a9",
    "niah_multikey_2": "1e9b70c673331e99",
    "niah_multikey_3": "69dbb9487f839acc",
    "niah_multivalue": "d5b15ace5021d2f2",
    "niah_multiquery": "4769360006453db6",
    "vt": "5971297d164bde0f",
    "cwe": "99702b3efb5c2d04",
    "fwe": "c60be049ce1e9958",
    "qa_1": "463c87ad13ef74e2",
    "qa_2": "644d47085bd491ba",
}


@pytest.mark.parametrize("name", ruler.TASKS)
def test_an_answer_stands_behind_the_prompt_and_has_the_full_score(name, files):
    sample, task = made(name, files), ruler.TASKS[name]
    answer = ruler.answer(task, sample)
    assert task.score(answer, sample.references) == 1
    assert answer.startswith(" ") != sample.answer_prefix.endswith(" ")


@pytest.mark.parametrize("name", ruler.TASKS)
def test_a_seed_gives_the_same_bits_everywhere(name, files):
    samples = [made(name, files, index=index) for index in (0, 1)]
    texts = [(s.prompt, s.answer_prefix, s.references) for s in samples]
    assert hashlib.blake2b(repr(texts).encode(), digest_size=8).hexdigest() == DIGESTS[name]
    assert texts[0] != texts[1]
    assert made(name, files) == samples[0]
    if not name.startswith("qa"):
        assert made(name, files, seed=43).references != samples[0].references


NIAH = {name: task for name, task in ruler.TASKS.items() if name.startswith("niah")}
# (needles, references, form of a reference)
COUNTS = {
    "niah_single_1": (1, 1, r"\d{7}"),
    "niah_single_2": (1, 1, r"\d{7}"),
    "niah_single_3": (1, 1, r"[0-9a-f-]{36}"),
    "niah_multikey_1": (4, 1, r"\d{7}"),
    "niah_multikey_2": (1, 1, r"\d{7}"),
    "niah_multikey_3": (1, 1, r"[0-9a-f-]{36}"),
    "niah_multivalue": (4, 4, r"\d{7}"),
    "niah_multiquery": (4, 4, r"\d{7}"),
}


@pytest.mark.parametrize("name", NIAH)
def test_needles_stand_at_the_stated_depths_and_answer_the_question(name, files):
    sample = made(name, files)
    needles, wanted, form = COUNTS[name]
    assert (len(sample.depths), len(sample.references)) == (needles, wanted)
    assert list(sample.depths) == sorted(sample.depths)
    assert all(re.fullmatch(form, reference) for reference in sample.references)
    sentences = re.findall(r"One of the special magic (\w+) for (\S+) is: (\S+)\.", sample.prompt)
    keys = collections.Counter(key for _, key, _ in sentences)
    if name != "niah_multivalue":
        assert set(keys.values()) == {1}  # a key is never ambiguous
    asked = [value for _, key, value in sentences if key in sample.answer_prefix]
    assert sorted(asked) == sorted(sample.references)
    singular = wanted == 1
    assert sample.prompt.startswith("A special" if singular else "Some special")
    assert sample.answer_prefix.endswith(" is" if singular else " are")
    if len(sample.depths) == 1:
        context = sample.prompt.split("afterwards.\n")[1].rsplit("\nWhat ", 1)[0]
        before = context.index(f"is: {sample.references[0]}.") / len(context)
        assert 100 * before == pytest.approx(sample.depths[0], abs=6)


def test_essays_take_depths_from_forty_even_percents(files):
    assert (niah.DEPTHS[0], niah.DEPTHS[-1], len(set(niah.DEPTHS))) == (0, 100, 40)
    sample = made("niah_multivalue", files, 9000)
    assert len(set(sample.depths)) == 4


@pytest.mark.parametrize("depth", [0, 37, 50, 100])
def test_a_needle_can_be_put_at_a_depth(depth):
    for name in ("niah_single_1", "niah_single_2"):
        request = Request("depths", 3, 6000, ESSAY, depth=depth)
        sample = ruler.sample(ruler.TASKS[name], request, num_bytes)
        assert sample.depths[0] == pytest.approx(depth, abs=1.5)


def test_the_needles_of_a_sample_are_the_same_at_every_length(files):
    for name in NIAH:
        short, long = (made(name, files, length) for length in (2048, 9000))
        assert short.references == long.references
        assert short.answer_prefix == long.answer_prefix


def test_a_chain_of_variables_leads_to_all_of_its_names(files):
    sample = made("vt", files)
    body = sample.prompt.split("\n\nMemorize")[1]  # behind the worked example
    value = re.search(r"assigned the value (\d{5}) in the text", body)[1]
    lines = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", body, re.MULTILINE)
    assert tuple(name for name, _ in lines) == sample.references
    assert [source for _, source in lines] == [value, *sample.references[:-1]]
    assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.references)
    assert f"5 variables are assigned the value {value}, they are: " in sample.answer_prefix
    example = sample.prompt.split("\n\nMemorize")[0]
    assert len(re.findall(r"^VAR [A-Z]{3} = ", example, re.MULTILINE)) == 5


@pytest.mark.parametrize(("length", "common", "other"), [(9000, 30, 3), (4096, 6, 1), (3000, 6, 1)])
def test_common_words_come_as_often_as_published(files, length, common, other):
    sample = made("cwe", files, length)
    listed = sample.prompt.rsplit("most often.\n", 1)[1].split("\nQuestion")[0]
    counts = collections.Counter(re.findall(r"\d+\. (\S+)", listed))
    assert {counts.pop(word) for word in sample.references} == {common}
    assert set(counts.values()) == {other}
    assert len(sample.references) == 10


def test_frequent_words_are_ranks_two_to_four(files):
    sample = made("fwe", files, 9000)
    coded = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split()
    ranked = collections.Counter(coded).most_common()
    assert ranked[0][0] == "..."
    assert tuple(word for word, _ in ranked[1:4]) == sample.references
    assert ranked[3][1] > ranked[4][1]
    assert ranked[1][1] / ranked[3][1] == pytest.approx(4, rel=0.1)  # k^-2 at 2 and 4


def test_questions_have_their_document_among_distractors(files):
    sample = made("qa_1", files)
    assert "lives mayor M00" in sample.prompt
    own, other = re.findall(r"In town 0-", sample.prompt), re.findall(r"In town \d", sample.prompt)
    assert len(own) == 12 < len(other)  # those of the same article come first
    assert sample.prompt.count("Document ") == len(other)
    assert sample.references == ("M00", "mayor M00")
    assert made("qa_2", files).references == ("Fact 0.2",)


@pytest.mark.parametrize(
    ("name", "word"), [("niah_multikey_2", r"for (\S+) is"), ("cwe", r"\. (\S+)")]
)
def test_a_sample_ends_where_its_words_do(name, word):
    request = Request(name, 0, 1 << 21)
    sample = ruler.sample(ruler.TASKS[name], request, lambda sample: 1)
    found = set(re.findall(word, sample.prompt))
    pool = vocabulary.NUM_PAIRS + len(vocabulary.SINGLE) * (name == "cwe")
    assert pool <= len(found) <= pool + 100  # of cwe's question and worked example besides


@pytest.mark.parametrize("name", ["niah_single_1", "vt", "cwe", "fwe", "qa_1"])
def test_too_short_a_length_tells_what_is_needed(name, files):
    with pytest.raises(TooShort) as caught:
        made(name, files, 300)
    sample = made(name, files, caught.value.needed)
    total = num_bytes(sample) + sample.tokens_to_generate
    assert total == caught.value.needed


def test_the_largest_size_is_found_in_few_probes():
    for budget in (41, 48, 1000, 123_456):
        probes = []

        def cost(size, probes=probes):
            probes.append(size)
            return 33 + 7 * size + size % 3

        found = largest(cost, budget, 1, 10**9)
        assert cost(found) <= budget < cost(found + 1)
        assert len(probes) < 30
    assert largest(lambda size: size, 100, 1, 50) == 50


def test_the_essay_is_running_text_cut_into_sentences(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One is here. Two\nis\tthere!  (Three) is far? e.g. four.\n\nFive")
    config = DataConfig(source="text", paths=(str(path),))
    assert haystack.essay(config) == (
        "One is here.", "Two is there!", "(Three) is far? e.g. four.", "Five",
    )  # fmt: skip
    assert haystack.name(config).startswith("text of text, fingerprint ")
    code = b'"""Module. More."""\ndef f():\n    """Function.\n\n    >>> 1\n    1\n    """\n'
    assert list(haystack.docstrings(code)) == ["Module. More.", "Function."]
    assert list(haystack.docstrings(b"def (")) == []


def test_the_default_essay_is_the_docstrings_of_the_library(monkeypatch):
    monkeypatch.setattr(haystack, "LEAST_CHARACTERS", 20_000)
    found = haystack.essay.__wrapped__(DataConfig())
    assert 20_000 < sum(map(len, found)) < 200_000
    assert haystack.name(DataConfig()).startswith("docstrings of stdlib of Python 3.")
    mixture = ({"name": "a", "paths": "a.txt"}, {"name": "b", "paths": "b.txt"})
    store = {"source": "prepared", "paths": ("store",)}
    for keys in ({"source": "needle"}, store, {"mixture": mixture}):  # no running text of a file
        config = config_lib.build(DataConfig, keys)
        assert haystack.essay.__wrapped__(config) == found
        assert haystack.name(config) == haystack.name(DataConfig())


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not in the form"), ('{"data": 3}', "is not in the form"), ("[]", "is not in the"),
     ('{"data": []}', "holds no question")],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(tmp_path, content, said):
    path = tmp_path / "questions.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"^eval.retrieval.squad_path: {said}"):
        questions.read_squad(str(path))


WRONG_TEXTS = ("", " ", 3, None, ["a"], "a\ud800")


@pytest.mark.parametrize("text", WRONG_TEXTS)
@pytest.mark.parametrize("name", ["question", "context", "answer"])
def test_questions_of_squad_are_texts_with_answers(tmp_path, name, text):
    values, path = squad(2, 2), tmp_path / "squad.json"
    paragraph = values["data"][1]["paragraphs"][0]
    if name == "context":
        paragraph["context"] = text
    elif name == "question":
        paragraph["qas"][0]["question"] = text
    else:
        paragraph["qas"][0]["answers"][1]["text"] = text
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"^eval.retrieval.squad_path: is not in the form") as got:
        questions.read_squad.__wrapped__(str(path))
    assert "\n" not in str(got.value)
    str(got.value).encode()


@pytest.mark.parametrize(
    "changes",
    [
        *({name: text} for name in ("question", "answer") for text in WRONG_TEXTS),
        *({"context": [[title, ["A fact."]]]} for title in WRONG_TEXTS),
        *({"context": [["Title", [sentence]]]} for sentence in WRONG_TEXTS[2:]),
        *({"context": context} for context in ([], {}, "ab", [["Title", "text"]])),
    ],
)
def test_questions_of_hotpotqa_are_texts_with_documents(tmp_path, changes):
    values, path = hotpotqa(3), tmp_path / "hotpotqa.json"
    values[1] |= changes
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"^eval.retrieval.hotpotqa_path: is not in the") as got:
        questions.read_hotpotqa.__wrapped__(str(path))
    str(got.value).encode()


@pytest.mark.parametrize("sentences", [[], [""], [" "]])
def test_a_document_of_hotpotqa_may_have_a_title_alone(tmp_path, sentences):
    values, path = hotpotqa(3), tmp_path / "hotpotqa.json"
    values[1]["context"].append(["Alone", sentences])
    path.write_text(json.dumps(values))
    found = questions.read_hotpotqa.__wrapped__(str(path))
    assert f"Alone\n{''.join(sentences)}" in found.documents


# What NVIDIA/RULER's string_match_all and string_match_part (scripts/eval/synthetic/constants.py)
# give behind postprocess_pred (scripts/eval/evaluate.py), in percent to two digits.
PUBLISHED = [
    ("It is 12, then AB.", ("12", "ab", "cd", "ef"), 50, 100),
    ("bravo and delta", ("ALPHA", "BRAVO", "CHARLIE", "DELTA"), 50, 100),
    ("ALPHA bravo Charlie delta", ("alpha", "BRAVO", "charlie", "Delta"), 100, 100),
    ("found 1111111 and 3333333", ("1111111", "2222222", "3333333", "4444444"), 50, 100),
    ("1. ai 2. be", ("ai", "be", "ci"), 66.67, 100),
    ("neither Yes nor no", ("maybe", "yes"), 50, 100),
    ("  padded\x00answer  ", ("padded", "answer"), 100, 100),
    ("a\tb", ("a\nb",), 100, 100),  # control characters are line ends
    ("12345678", ("1234567",), 100, 100),  # anywhere, words or not
    ("1,234,567", ("1234567",), 0, 0),
    ("nothing at all", ("ALPHA", "BRAVO"), 0, 0),
    ("", ("ALPHA",), 0, 0),
]


@pytest.mark.parametrize(("reply", "references", "all_found", "any_found"), PUBLISHED)
def test_scores_are_the_published_ones(reply, references, all_found, any_found):
    assert round(100 * scores.all_found(reply, references), 2) == all_found
    assert round(100 * scores.any_found(reply, references), 2) == any_found


@pytest.mark.parametrize(
    ("reply", "cleaned"),
    [
        ("\n a\tb\x00 \n", "a\nb"),
        ("  a\tb\x00c  ", "a\nb\nc"),
        ("\x1fa\x7f", "a\x7f"),  # DEL is no control character there
        ("a  b", "a  b"),
    ],
)
def test_replies_are_cleaned_as_published(reply, cleaned):
    assert scores.cleaned(reply) == cleaned
