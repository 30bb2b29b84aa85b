"""The sizes and rates that the weights of a checkpoint depend on: `Config`.

Defaults are those of the released Fun-CosyVoice3-0.5B; a smaller voice states its own sizes in its
`cosyvoice3.yaml`.
"""

from dataclasses import dataclass, field

from workbench.trace.schema import SAMPLE_RATE, TOKEN_RATE

# Ids of the released speech tokenizer that stand for silence or breath (upstream cli/model.py).
SILENT_TOKENS = (1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323)


@dataclass(frozen=True)
class MelConfig:
    """Log-mel features: natural log, Slaney filters."""

    sample_rate: int = SAMPLE_RATE  # Hz
    n_fft: int = 1920  # samples, 80 ms
    win_length: int = 1920  # samples
    hop_length: int = 480  # samples, 20 ms
    n_mels: int = 80
    fmin: float = 0.0  # Hz
    fmax: float | None = None  # Hz; None is half the sample rate

    @property
    def frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class LMConfig:
    """Qwen2 decoder over text and speech tokens."""

    speech_token_size: int = 6561  # 3**8 FSQ codes; the ids above are sos, eos, task, fill and unused ones
    n_special: int = 200  # how many ids are above
    mix_ratio: tuple[int, int] = (5, 15)  # text : speech tokens when text arrives as a stream
    hidden_size: int = 896
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    vocab_size: int = 151_936
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    min_token_text_ratio: float = 2.0  # speech tokens per text token before which the LM may not stop
    max_token_text_ratio: float = 20.0  # speech tokens per text token at which decoding is cut off

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def n_ids(self) -> int:
        """Rows of the speech embedding and of the output layer."""
        return self.speech_token_size + self.n_special

    @property
    def sos(self) -> int:
        """Start of sequence. Every id from here on stops decoding."""
        return self.speech_token_size

    @property
    def eos(self) -> int:
        """End of speech."""
        return self.speech_token_size + 1

    @property
    def task_id(self) -> int:
        """Boundary between text and speech."""
        return self.speech_token_size + 2

    @property
    def fill(self) -> int:
        """Request for more text when text arrives as a stream."""
        return self.speech_token_size + 3


@dataclass(frozen=True)
class DiTConfig:
    """The flow's velocity estimator, a diffusion transformer."""

    dim: int = 1024
    depth: int = 22
    heads: int = 16
    dim_head: int = 64
    ff_mult: int = 2
    mel_dim: int = 80
    mu_dim: int = 80
    spk_dim: int = 80
    out_channels: int = 80
    static_chunk_size: int = 50  # mel frames per chunk of the attention mask in streaming
    num_decoding_left_chunks: int = -1  # upstream ignores it: a chunk attends to all chunks before it


@dataclass(frozen=True)
class FlowConfig:
    """The flow: speech tokens to mel."""

    vocab_size: int = 6561
    output_size: int = 80  # mel bins
    spk_embed_dim: int = 192
    token_mel_ratio: int = 2  # mel frames per token
    pre_lookahead_len: int = 3  # tokens
    pre_lookahead_channels: int = 1024
    input_frame_rate: int = TOKEN_RATE  # tokens per second
    noise_frames: int = 15_000  # length of upstream's fixed noise: 300 s
    dit: DiTConfig = field(default_factory=DiTConfig)


@dataclass(frozen=True)
class HiFTConfig:
    """The vocoder, mel to waveform: f0 -> harmonic source -> inverse STFT."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = SAMPLE_RATE  # Hz
    nsf_alpha: float = 0.1  # amplitude of each sine
    nsf_sigma: float = 0.003  # noise amplitude where voiced
    nsf_voiced_threshold: float = 10.0  # Hz
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 7)
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99  # samples beyond it are clipped
    conv_pre_look_right: int = 4  # mel frames
    f0_cond_channels: int = 512
    noise_samples: int = 7_200_000  # length of the stored excitation noise: 300 s

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        hop = self.istft_hop_len
        for rate in self.upsample_rates:
            hop *= rate
        return hop


@dataclass(frozen=True)
class Config:
    """The sizes and rates that the weights of one CosyVoice3 checkpoint depend on.

    Parameters
    ----------
    mel, lm, flow, hift, chunk_size, silent_tokens, scripts
        As said below, beside each field.

    Examples
    --------
    >>> wb.Config().lm.hidden_size  # the released model
    896
    >>> voice.config.token_rate, voice.config.mel.frame_rate  # per second
    (25, 50.0)
    """

    mel: MelConfig = field(default_factory=MelConfig)
    lm: LMConfig = field(default_factory=LMConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)
    chunk_size: int = 25  # speech tokens per chunk in streaming
    silent_tokens: tuple[int, ...] = SILENT_TOKENS
    scripts: tuple[str, ...] = ()  # Unicode scripts that the voice can read, such as LATIN; empty for any

    @property
    def token_rate(self) -> int:
        """Speech tokens per second."""
        return self.flow.input_frame_rate


RELEASED = Config()  # sizes and rates of the released model
