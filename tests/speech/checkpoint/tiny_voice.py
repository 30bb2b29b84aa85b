"""A voice small enough to be made, saved and loaded in no time."""

from workbench.speech.config import Config, DiTConfig, FlowConfig, HiFTConfig, LMConfig

TINY = Config(
    lm=LMConfig(
        speech_token_size=27,
        n_special=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        vocab_size=20,
    ),
    flow=FlowConfig(
        vocab_size=27,
        spk_embed_dim=8,
        pre_lookahead_channels=8,
        noise_frames=100,
        dit=DiTConfig(dim=16, depth=1, heads=1, dim_head=4),
    ),
    hift=HiFTConfig(
        base_channels=8,
        nb_harmonics=1,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
        source_resblock_kernel_sizes=(3, 3, 3),
        source_resblock_dilation_sizes=((1,),) * 3,
        f0_cond_channels=4,
        noise_samples=4_800,
    ),
    silent_tokens=(1, 2),
)
FILES = {"lm": "llm", "flow": "flow", "hift": "hift"}  # stem of each stage's file
