"""Dropped files: they arrive in pieces in a folder that is removed, under harmless names, within limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from workbench.show.dashboard import drop_zone
from workbench.show.dashboard.drop_zone import DropZone, safe_path


class Page:
    """A page that sends files to a drop zone, and keeps what it answers."""

    def __init__(self, opened=lambda folder: "opened"):
        self.seen = []
        self.answers = []

        def on_files(folder):
            self.seen = [
                (str(path.relative_to(folder)), path.read_bytes())
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            self.folder = folder
            return opened(folder)

        self.zone = DropZone(on_files)
        self.zone.send = self.answers.append

    def say(self, buffers=(), **message):
        self.zone._take(self.zone, {"transfer": "t"} | message, [memoryview(each) for each in buffers])
        return self.answers[-1]

    def drop(self, files, piece=4):
        self.say(kind="begin", files=[[name, len(content)] for name, content in files])
        for index, (_, content) in enumerate(files):
            for start in range(0, len(content), piece):
                self.say([content[start : start + piece]], kind="piece", index=index, start=start)
        return self.say(kind="end")


def test_files_of_a_folder_arrive_whole_and_are_removed_afterwards():
    page = Page()
    files = [("dump/mel.npy", b"0123456789"), ("dump/wav.npy", b""), ("run.trace", b"abc")]
    assert page.drop(files) == {"kind": "done", "text": "opened", "transfer": "t"}
    assert page.seen == [(name, content) for name, content in files]
    assert not page.folder.exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\temp\\a.wav", "C_/temp/a.wav"),
        (".ssh/id", "ssh/id"),
        ("a\0b\n.wav", "a_b_.wav"),
        ("", "file"),
        ("..", "file"),
        ("\ud800.wav", "_.wav"),
        ("server.log#2", "server.log#2"),
    ],
)
def test_a_name_stays_in_its_folder_and_can_be_written(name, expected):
    assert safe_path(name).as_posix() == expected


@settings(max_examples=examples(200), deadline=None)
@given(st.text(max_size=400))
def test_any_name_can_be_written(name):
    page = Page()
    assert page.drop([(name, b"x"), (name, b"y")])["kind"] == "done"
    assert sorted(content for _, content in page.seen) == [b"x", b"y"] and not page.folder.exists()


def test_a_long_name_keeps_its_ending():
    name = safe_path("\u00e4" * 500 + ".trace").name
    assert name.endswith(".trace") and len(name.encode()) <= 200


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "begin", "files": []},
        {"kind": "begin", "files": "all"},
        {"kind": "begin", "files": [["a.wav", -1]]},
        {"kind": "begin", "files": [["a.wav", "many"]]},
        {"kind": "begin", "files": [["a.wav", 1]] * 1001},
        {"kind": "begin", "files": [["a.wav", 10**15]]},
        {"kind": "begin", "files": [["a", 1], ["a/b", 1]]},
        {"kind": "piece", "index": 0, "start": 0},
        {"kind": "end"},
        {},
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(message):
    answer = Page().say(**message)
    assert answer["kind"] == "refused" and answer["text"] and "\n" not in answer["text"]


@pytest.mark.parametrize(
    "wrong", [{"index": 1}, {"index": -1}, {"index": None}, {"start": 2}, {"start": None}]
)
def test_a_piece_out_of_order_ends_the_transfer(wrong):
    page = Page()
    page.say(kind="begin", files=[["a.wav", 4]])
    assert page.say([b"ab"], **({"kind": "piece", "index": 0, "start": 0} | wrong))["kind"] == "refused"
    assert page.zone._transfer is None


def test_more_bytes_than_stated_or_fewer_are_refused():
    page = Page()
    page.say(kind="begin", files=[["a.wav", 4]])
    assert page.say([b"12345"], kind="piece", index=0, start=0)["kind"] == "refused"
    page.say(kind="begin", files=[["a.wav", 4]])
    page.say([b"123"], kind="piece", index=0, start=0)
    assert "not all" in page.say(kind="end")["text"]


def test_a_newer_drop_takes_the_place_of_an_older_one():
    page = Page()
    page.say(kind="begin", files=[["old.wav", 4]])
    old = page.zone._transfer.folder
    page.drop([("new.wav", b"1234")])
    assert [name for name, _ in page.seen] == ["new.wav"] and not old.exists()


def test_a_drop_larger_than_the_disk_is_refused(monkeypatch):
    monkeypatch.setattr(drop_zone, "SPARE", 10**15)
    assert "MB" in Page().say(kind="begin", files=[["a.wav", 1]])["text"]
