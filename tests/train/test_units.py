"""Sentences put together from segments: alignment and choice on toys whose answer is known."""

import torch

from workbench.train.models.units import Units, align, read_sentences


def spikes(classes, n_frames, at):
    """CTC log-probabilities that are sure of one class at some frames and of blank elsewhere."""
    logits = torch.zeros(n_frames, classes)
    logits[:, 0] = 8
    for frame, phone in at.items():
        logits[frame, 0], logits[frame, phone] = 0, 8
    return logits.log_softmax(-1)


def test_borders_lie_between_spikes():
    ends = align(spikes(5, 24, {2: 1, 10: 2, 18: 3}), torch.tensor([1, 2, 3]), 12)
    assert ends.tolist() == [3, 7, 12]  # spikes at 2, 10, 18 of 24 frames; a token is two frames


def test_a_repeated_phoneme_and_a_crowded_line():
    ends = align(spikes(3, 12, {2: 1, 8: 1}), torch.tensor([1, 1]), 6)
    assert ends.tolist()[-1] == 6 and 0 < ends[0] < 6
    crowded = align(spikes(3, 4, {}), torch.tensor([1, 2, 1, 2, 1, 2]), 2)
    assert len(crowded) == 6 and crowded.tolist() == sorted(crowded.tolist()) and crowded[-1] == 2


class Toy:
    """What Units reads of a corpus."""

    train = torch.tensor([0, 1])
    speaker_ids = torch.tensor([0, 0])
    speaker_names = ("one", "silent")

    def phones(self):
        return ["abc", "abd"]


def saved(path, pause=0):
    """Tokens of both; the first sentence's last phoneme lasts `pause` tokens longer."""
    torch.save(
        {
            "data": torch.tensor([*range(1, 10 + pause), *range(1, 10)], dtype=torch.int16),
            "offsets": torch.tensor([0, 9 + pause, 18 + pause]),
            "ends": torch.tensor([1, 3, 9 + pause, 2, 4, 5], dtype=torch.int16),
            "ends_offsets": torch.tensor([0, 3, 6]),
        },
        path,
    )
    return path


def test_the_longest_stretch_that_was_said(tmp_path):
    units = Units(Toy(), saved(tmp_path / "tokens.pt"))
    said = [units.say("abd", 0) for _ in range(20)]  # "ab" as in either sentence, "d" as in the second
    assert {tuple(tokens[:-1]) for tokens in said} == {(1, 2, 3, 4)} and {t[-1] for t in said} == {5}
    assert units.say("b", 0) in ([2, 3], [3, 4])  # never said between edges: any "b" will do
    assert units.say("abz", 0) == [] and units.say("a", 1) == []


def test_a_phoneme_that_holds_a_pause_is_not_used(tmp_path):
    units = Units(Toy(), saved(tmp_path / "tokens.pt", pause=8))
    assert units.say("c", 0) == [] and units.say("ab", 0)


def test_sentences_file(tmp_path):
    (tmp_path / "s.tsv").write_text('text\tphones\nHe said "no".\thIsEdnO\n')
    assert read_sentences(tmp_path / "s.tsv") == [('He said "no".', "hIsEdnO")]
