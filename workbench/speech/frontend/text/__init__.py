"""Text becomes ids.

Read `reading.py` first: what the front ends "workbench", "upstream" and "off" do with a text. `normalise.py`
and `split.py` are the workbench's rules, `upstream.py` upstream's; `language.py` says what a text is made of,
`tokenizer.py` encodes it, and `stream.py` does so while it arrives.
"""

from workbench.speech.frontend.text.language import check_scripts
from workbench.speech.frontend.text.normalise import normalise
from workbench.speech.frontend.text.reading import FRONTENDS, WORKBENCH, Reading, check_frontend, read_text
from workbench.speech.frontend.text.split import split
from workbench.speech.frontend.text.stream import TextStream
from workbench.speech.frontend.text.tokenizer import END_OF_PROMPT, TextTokenizer, special_tokens

__all__ = [
    "END_OF_PROMPT",
    "FRONTENDS",
    "WORKBENCH",
    "Reading",
    "TextStream",
    "TextTokenizer",
    "check_frontend",
    "check_scripts",
    "normalise",
    "read_text",
    "special_tokens",
    "split",
]
