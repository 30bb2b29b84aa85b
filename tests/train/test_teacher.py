"""Sentences and their reading aloud, without WordNet, espeak-ng or Kokoro."""

import random
import tarfile
from collections import Counter

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.train.corpus import sentences, teacher, templates, wordnet
from workbench.train.corpus.corpus import build
from workbench.train.corpus.kokoro import RMS, SAMPLE_RATE, Kokoro, encode, letters, level, phonemes


@pytest.mark.parametrize(
    ("ipa", "spelt"),
    [
        ("bˈʌʔn̩", "bˈʌtᵊn"),
        ("mˈaʊntɪnlˈaɪk", "mˈWntɪnlˈIk"),
        ("fˈʊʔbɔːl", "fˈʊtbɔl"),
        ("dʒˈɔɪ tʃˈeɪndʒ", "ʤˈY ʧˈAnʤ"),
        ("həlˈoʊ", "həlˈO"),
        ("lˈɪɾəl", "lˈɪTᵊl"),
        ("fˈæməli", "fˈæməli"),
        ("ɹˈɪðm̩", "ɹˈɪðᵊm"),
        ("bˈɜːd wˈɜːɹk", "bˈɜɹd wˈɜɹk"),
        ("wˈɔːɾɚ", "wˈɔTəɹ"),
        ("ɐ lˈɑːx", "ə lˈɑk"),
        ("piˈoʊnʲə", "piˈOnjə"),
        ("aɪdˈɪə", "Idˈiə"),
        ("kɹˈoː", "kɹˈɔ"),
        ("ɔ̃", "ɔ"),
    ],
)
def test_letters(ipa, spelt):
    assert letters(ipa) == spelt


def test_phonemes_keep_punctuation_and_ask_once():
    asked = []

    def speak(clauses):
        asked.append(clauses)
        return [f"<{clause}>" for clause in clauses]

    spelt = phonemes(["Hello, you!", "So be it."], speak)
    assert asked == [["Hello", "you", "So be it"]]
    assert [kokoro for kokoro, _ in spelt] == ["<HAllɔ>, <yɔu>!", "<Sɔ bA it>."]
    assert [ipa for _, ipa in spelt] == ["<Hello> <you>", "<So be it>"]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Hello, I am an AI voice assistant.", True),
        ("Where did she go?", True),
        ("It's a well-known o'clock joke!", True),
        ("Good night, Peter. How can I help you today?", True),
        ("Ask W. Smith about it.", False),
        ("Go away.", False),
        ("it has no capital.", False),
        ("It has no full stop", False),
        ("It has 3 digits.", False),
        ("It is naïve to think so.", False),
        ("Ask Mr Smith about it.", False),
        ("We met at plan B yesterday.", False),
        ("They joined the NATO forces.", False),
        ("She said - nothing at all.", False),
        ("It was a massacre there.", False),
        ("word ".capitalize() + "word " * 20 + "word.", False),
    ],
)
def test_usable(text, good):
    assert sentences.usable(text) is good


def test_choose_prefers_seldom_words_and_repeats_nothing():
    seen = Counter({"cat": 9, "sat": 9, "on": 9, "mat": 9})
    banned = {sentences.key("I want my own room.")}
    texts = [
        "The cat sat on the mat.",
        "A cat sat on a mat!",
        "The zebra grazed on hay.",
        "i want MY own room",
        "She said I want my own room now.",
    ]
    chosen = sentences.choose(texts, 5, set(banned), seen, banned)
    assert chosen[0] == "The zebra grazed on hay."
    assert len(chosen) == 2
    assert seen["cat"] == 10


def test_read_texts(tmp_path):
    (tmp_path / "a.txt").write_text("One is here.\n\nTwo are here.\n")
    (tmp_path / "b.tsv").write_text('id\ttext\nx\tSay "no" now.\n')
    assert sentences.read_texts(tmp_path / "a.txt") == ["One is here.", "Two are here."]
    assert sentences.read_texts(tmp_path / "b.tsv") == ['Say "no" now.']
    with pytest.raises(WorkbenchError, match=r"no c\.txt"):
        sentences.read_texts(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            ("noun", "18", "gleaner", "someone who picks up grain left in the field"),
            "A gleaner is someone who picks up grain left in the field.",
        ),
        (("noun", "05", "ounce", "a large cat; see leopard"), "An ounce is a large cat."),
        (("noun", "28", "reign", "the time of a king"), "The word reign means the time of a king."),
        (("noun", "18", "Diderot", "French philosopher"), "Diderot was a French philosopher."),
        (("verb", "42", "melt", 'become liquid; "ice melts"'), "To melt means to become liquid."),
        (("adj", "00", "dry", "not wet"), "If something is dry, it is not wet."),
        (("verb", "30", "strip", "remove the salts from"), ""),
        (("noun", "20", "rose", "a shrub of the genus Rosa"), ""),
        (("adj", "00", "spastic", "relating to spasm"), ""),
    ],
)
def test_definition(entry, text):
    assert wordnet.definition(*entry) == text


def test_number_words():
    words = {0: "zero", 21: "twenty-one", 100: "one hundred", 118: "one hundred and eighteen"}
    words |= {2450: "two thousand four hundred and fifty", 30001: "thirty thousand and one"}
    assert {number: templates.number_words(number) for number in words} == words


def test_templates_all_fill_to_usable_sentences():
    nouns = {slot: ["owl", "apple", "cat"] for slot in ("animal", "thing", "body", "food", "person", "plant")}
    rng = random.Random(0)
    for template in templates.TEMPLATES.strip().splitlines():
        text = templates.fill(template, nouns, rng)
        assert sentences.usable(text), text
        assert " a owl" not in text
    assert all(map(sentences.usable, templates.PHRASES.strip().splitlines()))


def test_sentences_from_a_little_wordnet(tmp_path, monkeypatch):
    line = '00001 05 n 01 {} 0 000 | a {} that hunts at night; "the {} hooted twice"  \n'
    (tmp_path / "data.noun").write_text("  1 a licence\n" + line.format("owl", "bird", "owl"))
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("  1 a licence\n")
    lexfiles = ("05", "06", "08", "13", "18", "20")
    (tmp_path / "cntlist.rev").write_text("".join(f"owl%1:{lexfile}:00:: 1 4\n" for lexfile in lexfiles))
    held_out = tmp_path / "heldout.txt"
    held_out.write_text("The owl hooted twice.\n")
    out = tmp_path / "out.txt"
    command = ["", str(out), "--count", "60", "--wordnet", str(tmp_path), "--exclude", str(held_out)]
    monkeypatch.setattr("sys.argv", command)
    sentences.main()
    texts = out.read_text().splitlines()
    assert "An owl is a bird that hunts at night." in texts
    assert "The owl hooted twice." not in texts
    assert len(set(texts)) == len(texts) == 16
    (tmp_path / "data.adv").unlink()
    with pytest.raises(WorkbenchError, match=r"no data\.adv"):
        sentences.main()


def tone(seconds, silence=0.4):
    wav = np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.05).astype(np.float32)
    return np.pad(wav, int(silence * SAMPLE_RATE))


def test_level_trims_and_sets_the_rms():
    wav = level(tone(1.0))
    assert len(wav) / SAMPLE_RATE == pytest.approx(1.21, abs=0.021)
    assert np.sqrt(np.mean(wav**2)) == pytest.approx(RMS, rel=1e-4)
    with pytest.raises(WorkbenchError, match="silence"):
        level(np.zeros(SAMPLE_RATE, dtype=np.float32))


def test_kokoro_names_what_the_model_directory_lacks(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no model\.onnx"):
        Kokoro(tmp_path)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "phonemes", lambda texts: [(text, "tˈeɪk") for text in texts])
    path = tmp_path / "phonemes.tsv"
    teacher.write_table(path, [f"This is sentence {c * 3}." for c in "abcdefgh"], teacher.MAIN_SPEAKERS)
    return teacher.read_table(path)


def test_table_deals_speakers_evenly(table, tmp_path):
    assert [row["speaker"] for row in table] == [*teacher.MAIN_SPEAKERS] * 2
    assert table[1]["id"] == "gongitsune_x000001"
    assert all(teacher.SLOWEST <= float(row["speed"]) <= teacher.FASTEST for row in table)
    assert {row["phones"] for row in table} == {"tAk"}
    assert len({row["text"] for row in table}) == 8
    with pytest.raises(WorkbenchError, match=r"no other\.tsv"):
        teacher.read_table(tmp_path / "other.tsv")


def test_pack_is_read_by_the_corpus(table, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    with pytest.raises(WorkbenchError, match="speak first"):
        teacher.pack(table, tmp_path, shards)
    rows = table[:5]
    for count, row in enumerate(rows, 1):
        path = tmp_path / "wav" / row["speaker"] / f"{row['id']}.opus"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(level(tone(0.2 * count))))
    monkeypatch.setattr(teacher, "SHARD_BYTES", 10240 + 12000)
    hours = teacher.pack(table, tmp_path, shards, first=6)
    names = sorted(path.name for path in shards.glob("*.tar"))
    assert names[0] == "opus_06.tar"
    assert len(names) > 1
    with tarfile.open(shards / names[0]) as tar:
        assert tar.getnames()[0] == f"kumo/{rows[0]['id']}.opus"
    header, first = (shards / "manifest.tsv").read_text().splitlines()[:2]
    assert header == "id\tspeaker\ttext\tseconds\twer\tshard"
    assert first.split("\t")[4:] == ["", "06"]
    corpus = build(shards, tmp_path / "data", workers=0)
    assert sorted(corpus.ids) == sorted(row["id"] for row in rows)
    assert set(corpus.phones()) == {"tAk"}
    assert corpus.lengths.sum() / SAMPLE_RATE / 3600 == pytest.approx(hours, rel=1e-3)
    longest = corpus.wav(corpus.ids.index(rows[4]["id"]))
    assert np.sqrt(np.mean(longest**2)) == pytest.approx(RMS, rel=0.05)


def test_speak_goes_on_where_it_stopped(table, tmp_path, monkeypatch):
    spoken = []

    class Pool:
        def __init__(self, workers, initializer, initargs):
            self.map = map
            self.shutdown = lambda cancel_futures: None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    def voice(speaker, letters, speed):
        spoken.append(speaker)
        return tone(0.1, 0.0)

    monkeypatch.setattr(teacher, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(teacher, "_teacher", voice)
    assert teacher.speak(table, tmp_path, tmp_path, hours=0.25 / 3600) == pytest.approx(0.3)
    assert spoken == ["kumo", "gongitsune", "alpha"]
    teacher.speak(table, tmp_path, tmp_path)
    assert len(spoken) == len(list(tmp_path.glob("wav/*/*.opus"))) == len(table)
    assert not list(tmp_path.glob("wav/*/*.tmp"))
