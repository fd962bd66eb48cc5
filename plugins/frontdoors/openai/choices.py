"""One answer as it grows: tokens to text, stop strings, logprobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen

from shuntserve_core.journal import Journal
from shuntserve_core.text import Detokenizer, StopStrings
from shuntserve_core.types.request import StepOutput, TokenLogprob
from shuntserve_plugins.frontdoors.openai.pace import Pace


@frozen
class Delta:
    """What one engine step added to an answer."""

    text: str
    tokens: Sequence[int] = ()
    """Tokens that belong to the text, for logprobs; a token that ends the answer does not."""
    logprobs: Sequence[TokenLogprob] = ()
    finish: str | None = None
    error: str = ""


Emit = Callable[["Choice", Delta], None]
More = Callable[["Choice", int, str], None]


@frozen(eq=False)
class Prompt:
    """A prompt and what every answer to it starts from."""

    tokens: tuple[int, ...]
    echo: bytes = b""
    """Its text as JSON, where it is to be shown before the answer."""
    scored: bool = False
    """Whether logprobs of the echo are asked for: then every token has its own, the one that ends
    the answer too, as whoever compares answers of servers expects."""
    characters: int = 0
    """Of its tokens one by one, where it is scored."""
    alone: bool = False
    """Whether nothing but the prompt is asked about; the one token that engines make is dropped."""


class Choice:
    """The sink of one journal: turns steps into deltas and hands them to `emit`.

    Nearly all steps of an answer add some text and nothing else: `more` is told how many tokens
    they were, and the text.  The first and the last step always are deltas.  `on_stop` is called
    when a stop string ends the answer before the engine knows.
    """

    __slots__ = (
        "_detokenizer",
        "_emit",
        "_more",
        "_on_stop",
        "_plain",
        "_stops",
        "counted",
        "finish",
        "index",
        "journal",
        "pace",
        "prompt",
    )

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        journal: Journal,
        detokenizer: Detokenizer,
        stops: StopStrings | None,
        emit: Emit,
        more: More,
        on_stop: Callable[[str], None],
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.journal = journal
        self.finish: str | None = None
        self.counted = 0
        """Tokens generated, the one that ended the answer included."""
        self.pace: Pace | None = None
        """When they came; None before it was submitted, and after its end was counted."""
        self._plain = stops is None and not prompt.alone and not prompt.scored
        self._detokenizer = detokenizer
        self._stops = stops
        self._emit = emit
        self._more = more
        self._on_stop = on_stop

    def on_output(self, output: StepOutput) -> None:
        """Take what an engine step produced."""
        if self.finish is not None:
            return
        new = output.tokens
        ordinary = self._plain and new and not output.logprobs and output.finish is None
        if ordinary and self.counted:
            self.counted += len(new)
            self._more(self, len(new), self._detokenizer.feed(new))
            return
        if self.prompt.alone:
            self._without_answer(output)
            return
        if self._stops is not None:
            self._emit(self, self._with_stops(output, self._stops))
            return
        tokens = self._visible(output)
        self.counted += len(output.tokens)
        text = self._detokenizer.feed(tokens)
        self.finish = output.finish
        if output.finish is not None:
            text += self._detokenizer.flush()
        shown = output.tokens if self.prompt.scored else tokens
        logprobs = output.logprobs[: len(shown)]
        self._emit(self, Delta(text, shown, logprobs, output.finish, output.error))

    def release(self) -> None:
        """Forget who listens; for an answer that has ended."""
        self._emit = _ignore
        self._more = _ignore
        self._on_stop = _ignore

    def _without_answer(self, output: StepOutput) -> None:
        self.finish = "error" if output.finish == "error" else "length"
        if output.finish is None:
            self._on_stop(self.journal.id)
        self._emit(self, Delta("", (), (), self.finish, output.error))

    def _visible(self, output: StepOutput) -> Sequence[int]:
        """The step's tokens without the one that ended the answer."""
        tokens = output.tokens
        ends = output.finish == "stop" and tokens
        if ends and tokens[-1] in self.journal.sampling.stop_token_ids:
            return tokens[:-1]
        return tokens

    def _with_stops(self, output: StepOutput, stops: StopStrings) -> Delta:
        """Token by token, so that what follows a stop string is neither sent nor counted."""
        tokens = self._visible(output)
        text = []
        for used, token in enumerate(tokens, start=1):
            self.counted += 1
            piece = self._detokenizer.feed((token,))
            if self.counted <= self.journal.sampling.min_tokens:
                text.append(piece)
                continue
            settled, met = stops.feed(piece)
            text.append(settled)
            if met:
                self.finish = "stop"
                if output.finish is None:
                    self._on_stop(self.journal.id)
                return Delta("".join(text), tokens[:used], output.logprobs[:used], "stop")
        self.counted += len(output.tokens) - len(tokens)
        self.finish = output.finish
        if output.finish is not None:
            settled, met = stops.feed(self._detokenizer.flush())
            text.append(settled if met else settled + stops.flush())
            if met and output.finish == "length":
                self.finish = "stop"
        shown = output.tokens if self.prompt.scored else tokens
        logprobs = output.logprobs[: len(shown)]
        return Delta("".join(text), shown, logprobs, self.finish, output.error)


def _ignore(*_: object) -> None:
    """For what comes after the end."""


@frozen(eq=False)
class Collected:
    """All deltas of an answer that is sent in one piece."""

    texts: list[str] = field(factory=list)
    tokens: list[int] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.texts.append(delta.text)
        if delta.logprobs:
            self.tokens.extend(delta.tokens)
            self.logprobs.extend(delta.logprobs)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)
