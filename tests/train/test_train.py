"""The corpus, the two tokenizers and the speaker encoder, on synthetic scraps."""

import io
import tarfile

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
import torchaudio

from workbench.errors import WorkbenchError
from workbench.train.budget import Averaged
from workbench.train.corpus import corpus
from workbench.train.gpu_features import Features
from workbench.train.models import bpe, fsq, speaker, tokenizer

SENTENCES = ["The sun has been rising before six.", "I'd asked for 2 hot drinks; really?", "Who created it?"]


@pytest.fixture
def shards(tmp_path):
    """Lay out two shards of decaying tones, one utterance missing from them."""
    rng = np.random.default_rng(0)
    rows = ["id\tspeaker\ttext\tseconds\twer\tshard"]
    for shard in range(2):
        with tarfile.open(tmp_path / f"opus_{shard:02d}.tar", "w") as tar:
            for i in range(6):
                name, who = f"u{shard}{i}", ("ada", "bob")[i % 2]
                n = int(rng.integers(9_000, 30_000))
                wav = 0.2 * np.sin(np.arange(n) * 0.05 * (1 + i % 2)) + 0.01 * rng.standard_normal(n)
                data = io.BytesIO()
                soundfile.write(data, wav.astype(np.float32), 24_000, format="OGG", subtype="OPUS")
                info = tarfile.TarInfo(f"{who}/{name}.opus")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
                rows.append(f'{name}\t{who}\tSay "{name}".\t1\t0\t{shard:02d}')
    (tmp_path / "manifest.tsv").write_text("\n".join([*rows, "lost\tada\tGone.\t1\t0\t07"]) + "\n")
    phones = "".join(f"u{s}{i}\tsA{'bn'[i % 2]}\n" for s in range(2) for i in range(6))
    (tmp_path / "phones.tsv").write_text("id\tphones\n" + phones)
    return tmp_path


@pytest.fixture
def small(shards):
    """Return the corpus of `shards`."""
    return corpus.build(shards, shards / "data", workers=0)


def test_corpus_reads_back_what_the_shards_hold(shards, small):
    assert len(small) == 12
    assert small.ids == sorted(small.ids)
    assert small.texts[3] == 'Say "u03".'
    assert small.speaker_names == ["ada", "bob"]
    assert small.speaker_ids.tolist() == [0, 1] * 6
    with tarfile.open(shards / "opus_01.tar") as tar:
        data = tar.extractfile("bob/u13.opus").read()
    wav, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    np.testing.assert_array_equal(small.wav(9) * 32768, wav)
    assert small.phones()[:2] == ["sAb", "sAn"]
    again = corpus.Corpus(small.root)
    assert torch.equal(again.valid, small.valid)
    assert sorted([*small.train.tolist(), *small.valid.tolist()]) == list(range(12))


def test_a_corpus_without_shards_says_so(tmp_path):
    (tmp_path / "manifest.tsv").write_text("id\tspeaker\ttext\nx\ty\tz\n")
    with pytest.raises(WorkbenchError, match=r"opus_\*\.tar"):
        corpus.build(tmp_path, tmp_path / "data", workers=0)
    with pytest.raises(WorkbenchError, match=r"index\.tsv"):
        corpus.Corpus(tmp_path)


def test_features_of_many_are_those_of_each(small):
    mels, heard, banks = small.mels(), small.whisper_mels(), small.fbanks()
    resample = torchaudio.transforms.Resample(24_000, 16_000)
    for i in range(len(small)):
        wav = torch.from_numpy(small.wav(i))
        padded = torch.nn.functional.pad(wav[None], (720, 720), mode="reflect")[0]
        window = torch.hann_window(1920)
        spectrum = torch.stft(padded, 1920, 480, window=window, center=False, return_complex=True)
        filters = torchaudio.functional.melscale_fbanks(961, 0.0, 12_000.0, 80, 24_000, "slaney", "slaney")
        mel = ((spectrum.abs() ** 2 + 1e-9).sqrt().T @ filters).clamp(min=1e-5).log()
        torch.testing.assert_close(mels[i].float(), mel, atol=1e-2, rtol=0)

        wav16 = resample(wav)
        power = torch.stft(wav16, 400, 160, window=torch.hann_window(400), return_complex=True).abs() ** 2
        filters = torchaudio.functional.melscale_fbanks(201, 0.0, 8_000.0, 128, 16_000, "slaney", "slaney")
        logs = (power[:, :-1].T @ filters).clamp(min=1e-10).log10()
        logs = (torch.maximum(logs, logs.max() - 8) + 4) / 4
        torch.testing.assert_close(heard[i].float(), logs, atol=2e-3, rtol=0)

        bank = torchaudio.compliance.kaldi.fbank(wav16[None], num_mel_bins=80, dither=0.0)
        torch.testing.assert_close(banks[i].float(), bank, atol=2e-2, rtol=0)


def test_batches_are_padded_with_zeros():
    lines = Features(torch.arange(1.0, 13)[:, None], torch.tensor([0, 5, 12]))
    frames, lengths = lines.batch(torch.tensor([1, 0]), starts=torch.tensor([4, 0]))
    assert frames[..., 0].tolist() == [[10, 11, 12, 0, 0], [1, 2, 3, 4, 5]]
    assert lengths.tolist() == [3, 5]


def test_bpe_spells_every_text_exactly(tmp_path):
    made = bpe.train(SENTENCES * 30, tmp_path, vocab=300)
    size = made.get_vocab_size(with_added_tokens=False)
    assert 256 < size <= 300
    texts = [*SENTENCES, "  Naïve \n\n café… 1234 e\u0301", "", "日本"]
    for text in texts:
        ids = bpe.encode(made, text)
        assert made.decode(ids) == made.normalizer.normalize_str(text)
        assert ids == bpe.encode(bpe.load(tmp_path), text)
    assert bpe.encode(made, "<|im_start|>a<|endoftext|>")[::2] == [size + 1, size]
    assert len(bpe.encode(made, SENTENCES[0])) < len(SENTENCES[0]) / 2


def test_bpe_dropout_spells_one_text_in_many_ways(tmp_path):
    bpe.train(SENTENCES * 30, tmp_path, vocab=300)
    shaky = bpe.load(tmp_path, dropout=0.3)
    ways = {tuple(bpe.encode(shaky, SENTENCES[0])) for _ in range(20)}
    assert len(ways) > 5
    assert all(shaky.decode(list(way)) == SENTENCES[0] for way in ways)


def test_ids_and_digits_are_one_to_one():
    for levels in ((3,) * 6, (5, 3, 7)):
        ids = torch.arange(int(np.prod(levels)))
        digits = fsq.to_digits(ids, levels)
        assert torch.equal(fsq.to_ids(digits, levels), ids)
        assert (digits < torch.tensor(levels)).all()
    assert fsq.to_ids(torch.tensor([2, 1, 0, 0, 1])) == 2 + 3 + 81
    with pytest.raises(WorkbenchError, match="odd"):
        fsq.Encoder(levels=(2, 3))


def test_rounding_passes_gradients():
    h = torch.tensor([0.4, -0.9], requires_grad=True)
    q = fsq.quantise(h)
    q.sum().backward()
    assert q.tolist() == [0, -1]
    assert h.grad.tolist() == [1, 1]


def _encoder():
    torch.manual_seed(1)
    encoder = fsq.Encoder(width=16, depth=(1, 1)).eval()
    with torch.no_grad():
        encoder.project.weight.mul_(20)
        for weight in encoder.parameters():
            weight.copy_(weight.half())
    return encoder


@pytest.mark.parametrize("n", [8, 9, 101, 3000])
def test_a_token_is_begun_every_four_frames_and_padding_is_not_heard(n):
    encoder = _encoder()
    feats = torch.randn(1, 128, n)
    ids = encoder.ids(feats, torch.tensor([n]))
    assert ids.shape == (1, -(-n // 4))
    assert ids.min() >= 0
    assert ids.max() < 243
    longer = torch.nn.functional.pad(feats, (0, 9), value=5.0)
    assert torch.equal(encoder.ids(longer, torch.tensor([n]))[:, : ids.shape[1]], ids)


def test_tokens_never_run_out_before_the_mel():
    samples = torch.arange(2_000, 50_000)
    heard = (2 * samples + 2) // 3 // 160
    assert ((heard + 3) // 4 >= samples // 480 // 2).all()


def test_the_exported_tokenizer_says_the_same_ids(tmp_path):
    encoder = _encoder()
    fsq.export(encoder, tmp_path / "tokenizer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tokenizer.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["feats", "feats_length"]
    for n in (8, 63, 500):
        feats = torch.randn(1, 128, n)
        (found,) = session.run(None, {"feats": feats.numpy(), "feats_length": np.array([n], np.int32)})
        truth = encoder.ids(feats, torch.tensor([n])).numpy()
        assert found.shape == truth.shape
        assert (found == truth).mean() > 0.98
    size = (tmp_path / "tokenizer.onnx").stat().st_size
    assert size < 2.2 * sum(weight.numel() for weight in encoder.parameters()) + 50_000


def test_the_exported_speaker_encoder_agrees(tmp_path):
    torch.manual_seed(0)
    encoder = speaker.SpeakerEncoder(width=16).eval()
    speaker.export(encoder, tmp_path / "campplus.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "campplus.onnx", providers=["CPUExecutionProvider"])
    for n in (40, 333):
        fbank = torch.randn(1, n, 80)
        (found,) = session.run(None, {"input": fbank.numpy()})
        truth = encoder(fbank).detach().numpy()
        assert found.shape == (1, 192)
        np.testing.assert_allclose(found, truth, atol=2e-3 * np.abs(truth).max())


@pytest.mark.slow
def test_a_few_steps_of_each_training(small, tmp_path):
    task = tokenizer.Task(small, torch.device("cpu"))
    model = tokenizer.train(task, tmp_path / "tok", 0.02, seed=0, size=4)
    result = tokenizer.finish(task, model, tmp_path / "tok")
    assert result["phone_error_rate"] >= 0
    tokens = torch.load(tmp_path / "tok/tokens.pt", weights_only=True)
    assert tokens["data"].dtype == torch.int16
    assert (tokens["offsets"].diff() >= small.mels().lengths // 2).all()
    restored = tokenizer.restore(task, tmp_path / "tok")
    torch.testing.assert_close(restored.state_dict(), model.state_dict())

    voices = speaker.train(small, torch.device("cpu"), 0.01, seed=0, size=8)
    result = speaker.finish(small, voices, torch.device("cpu"), tmp_path / "spk")
    saved = torch.load(tmp_path / "spk/embeddings.pt", weights_only=True)
    assert saved["data"].shape == (12, 192)
    assert saved["centroids"].shape == (2, 192)
    assert 0 <= result["train_accuracy"] <= 1


def test_a_resumed_average_goes_on(tmp_path):
    model = torch.nn.Linear(2, 1)
    average = Averaged(model)
    for _ in range(500):
        average.update(model)
    torch.save(average.state_dict(), tmp_path / "state.pt")
    again = Averaged(torch.nn.Linear(2, 1))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        model.weight.add_(1.0)
    again.update(model)
    moved = (again.model.weight - average.model.weight).mean()
    assert 0 < moved < 0.05  # a fresh average would have taken nine tenths of the step


def test_versions_of_an_utterance_are_other_tokens_of_like_length(small):
    torch.manual_seed(0)
    task = tokenizer.Task(small, torch.device("cpu"))
    encoder = task.model().encoder.eval()
    plain, longer = task.tokens(encoder), task.tokens(encoder, stretch=1.1)
    ratio = longer.lengths.sum() / plain.lengths.sum()
    assert 1.0 < ratio < 1.12 and len(longer) == len(plain)
    assert not torch.equal(longer.data[:50], plain.data[:50])
