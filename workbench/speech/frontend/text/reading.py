"""How a text is read: by the workbench's rules, by upstream's, or not at all."""

from typing import NamedTuple

from workbench.errors import WorkbenchError
from workbench.speech.frontend.text.language import check_has_words, is_verbatim
from workbench.speech.frontend.text.normalise import normalise, token_pattern
from workbench.speech.frontend.text.split import split
from workbench.speech.frontend.text.tokenizer import TextTokenizer
from workbench.speech.frontend.text.upstream import MAX_AT_ONCE, upstream_segments

WORKBENCH, UPSTREAM, OFF = "workbench", "upstream", "off"
FRONTENDS = (WORKBENCH, UPSTREAM, OFF)


class Reading(NamedTuple):
    """A text as the LM reads it."""

    text: str  # in one piece
    segments: list[str]  # each is spoken in one run
    frontend: str  # whose rules made them, one of FRONTENDS
    notes: tuple[str, ...] = ()  # where those rules were not kept, and why


def check_frontend(frontend: str, language: str | None = None) -> None:
    """Raise a WorkbenchError for an unknown front end, or a language where none is used."""
    if frontend not in FRONTENDS:
        raise WorkbenchError(f"frontend is {frontend!r}; expected one of {', '.join(FRONTENDS)}")
    if language is not None and frontend != WORKBENCH:
        raise WorkbenchError(
            f"language is {language!r} and frontend is {frontend!r}, which takes no language; "
            f"leave one of them out, or choose frontend={WORKBENCH!r}"
        )


def read_text(
    text: str, tokenizer: TextTokenizer, frontend: str = WORKBENCH, language: str | None = None
) -> Reading:
    """Return a text as the LM reads it.

    Parameters
    ----------
    text : str
        Any text.
    tokenizer : TextTokenizer
        Counts tokens, and names the tokens of the vocabulary, which stay as they are in every mode.
    frontend : {"workbench", "upstream", "off"}
        "workbench": `normalise` and `split`. "upstream": the same segments as upstream's front end; a text
        for which that raises is read by the workbench, and a note says so. "off": the text as it is, in one
        segment, as upstream's `text_frontend=False`.
    language : str, optional
        Code of the text's language, for "workbench"; guessed by default.

    Returns
    -------
    Reading

    Raises
    ------
    WorkbenchError
        When the text has nothing to say, or an argument is unknown.
    """
    check_frontend(frontend, language)
    if frontend == OFF or is_verbatim(text):
        check_has_words(text, text)
        return Reading(text, [text], frontend)
    if frontend == UPSTREAM:
        return _read_as_upstream(text, tokenizer)
    said = normalise(text, language, tokenizer.added_tokens)
    return Reading(said, split(said, tokenizer), frontend)


def _read_as_upstream(text: str, tokenizer: TextTokenizer) -> Reading:
    tokens = token_pattern(tuple(tokenizer.added_tokens))
    typed = tokens.findall(text)
    problem = ""  # what upstream's front end does wrong with this text
    for keep_tokens in (False, True) if typed else (False,):
        try:
            segments = upstream_segments(text, tokenizer, keep_tokens)
        except Exception as error:  # whatever upstream's front end raises; WeText asserts
            problem = problem or f"raises {type(error).__name__}"
            continue
        said = "".join(segments)
        if tokens.findall(said) == typed:
            check_has_words(said, text)
            notes = []
            if problem:
                notes.append(f"upstream's front end {problem}; here {' '.join(typed)} passed by it")
            if len(text) > MAX_AT_ONCE:
                notes.append(
                    f"upstream gives WeText all {len(text):,} characters at once, which takes gigabytes; "
                    f"here it read {MAX_AT_ONCE:,} at a time, which may differ where these meet"
                )
            return Reading(said, segments, UPSTREAM, tuple(notes))
        problem = problem or "changes tokens of the vocabulary in this text"
    note = f"upstream's front end {problem}; this text was read as frontend={WORKBENCH!r} reads it"
    return read_text(text, tokenizer)._replace(notes=(note,))
