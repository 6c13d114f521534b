"""Chat templates: where they come from, and text out of messages in the sandbox.

Does not: turn the text into tokens, or protect against control tokens in messages; `render.py` does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

import jinja2

from openhearth.chat.budget import Budget, TemplateLimits, spending
from openhearth.chat.files import find_templates
from openhearth.chat.sandbox import CLOCK, CUT_MARK, GENERATION_END, GENERATION_START, TemplateEnvironment
from openhearth.chat.tokenizer import Tokenizer
from openhearth.errors import TemplateError
from openhearth.formats.records import Checkpoint


class ChatTemplate:
    """The chat templates of one model, by name, compiled when first used.

    May be used from many threads. Example:
    ``ChatTemplate("{{ messages[0].content }}").render_text({"messages": [{"content": "hi"}]}) == "hi"``.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits = TemplateLimits(),
    ) -> None:
        """sources: one template, or name -> template. special_tokens: variables for every rendering."""
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self.special_tokens = dict(special_tokens or {})
        self.limits = limits
        self._environment = TemplateEnvironment(limits)
        self._compiled: dict[str, tuple[jinja2.Template, frozenset[str]]] = {}
        self._lock = threading.Lock()

    def choose(self, name: str | None, *, has_tools: bool) -> str:
        """Return the name of the template to use: the one asked for, `tool_use` with tools, or `default`.

        Raises: TemplateError, naming those that exist.
        """
        candidates = [name] if name else ["tool_use"] * has_tools + ["default"]
        for candidate in candidates:
            if candidate in self.sources:
                return candidate
        raise TemplateError(
            f"the model has no chat template `{candidates[-1]}`",
            why=f"it has: {', '.join(sorted(self.sources)) or 'none'}",
            hint="name one of them, or hearth run --raw",
        )

    def render_text(
        self,
        variables: Mapping[str, Any],
        *,
        name: str = "default",
        now: datetime | None = None,
        generation_marks: tuple[str, str] = ("", ""),
        cut_mark: str = "",
    ) -> str:
        """Return the text that a template makes.

        variables: plain JSON values only. now: for `strftime_now`; the clock's when None.
        generation_marks: put around the output of `{% generation %}` blocks.
        Raises: TemplateError with the template's line; its `raise_exception` message comes first.
        """
        own = {
            CLOCK: now,
            GENERATION_START: generation_marks[0],
            GENERATION_END: generation_marks[1],
            CUT_MARK: cut_mark,
        }
        with spending(Budget(self.limits)):
            template = self._template(name)[0]
            try:
                context = template.new_context({**self.special_tokens, **variables, **own})
                text = "".join(template.root_render_func(context))
            except Exception as error:  # the edge of one rendering; the template is a stranger's program
                raise _as_template_error(error, name, template) from error
        if len(text) > self.limits.output_chars:
            raise TemplateError(
                f"the chat template wrote {len(text)} characters",
                why=f"the limit is {self.limits.output_chars}",
                hint="shorten the conversation",
            )
        return text

    def constants(self, name: str) -> frozenset[str]:
        """Return the texts between quotes in a template. Raises: TemplateError."""
        with spending(Budget(self.limits)):
            return self._template(name)[1]

    def _template(self, name: str) -> tuple[jinja2.Template, frozenset[str]]:
        with self._lock:
            if name not in self._compiled:
                self._compiled[name] = self._compile(name)
            return self._compiled[name]

    def _compile(self, name: str) -> tuple[jinja2.Template, frozenset[str]]:
        source = self.sources[name]
        if len(source) > self.limits.source_chars:
            raise TemplateError(
                f"chat template `{name}` has {len(source)} characters",
                why=f"the limit is {self.limits.source_chars}",
                hint="hearth run --raw, or a template of your own",
            )
        try:
            return self._environment.prepare(source)
        except (
            Exception
        ) as error:  # as above: deep nesting ends in RecursionError, MemoryError or SyntaxError
            raise _as_template_error(error, name, None) from error


def load_template(
    checkpoint: Checkpoint, tokenizer: Tokenizer, limits: TemplateLimits = TemplateLimits()
) -> ChatTemplate | None:
    """Return the chat templates of a checkpoint, None when it has none.

    The tokenizer's special tokens become variables (`bos_token`...). Templates are compiled when
    they are used. Raises: BadFile for a file that cannot be read.
    """
    sources = find_templates(checkpoint)
    return ChatTemplate(sources, special_tokens=tokenizer.special_tokens, limits=limits) if sources else None


def _as_template_error(error: Exception, name: str, template: jinja2.Template | None) -> TemplateError:
    if isinstance(error, TemplateError):
        return error
    line = (
        error.lineno
        if isinstance(error, jinja2.TemplateSyntaxError)
        else _line(error.__traceback__, template)
    )
    where = f"chat template `{name}`" + (f", line {line}" if line else "")
    message = (getattr(error, "message", None) or str(error) or type(error).__name__).strip()[:2000]
    if type(error) is jinja2.TemplateError:  # raise_exception: the template speaks to the user
        return TemplateError(
            message.replace("\n", " "),
            why=f"{where} refused these messages",
            hint="change the messages, or hearth run --raw",
        )
    if isinstance(error, RecursionError):
        message = "it calls itself too deeply"
    return TemplateError(
        f"{where} failed",
        why=f"{type(error).__name__}: {message}",
        hint="hearth run --raw, or a template of your own",
    )


def _line(traceback: TracebackType | None, template: jinja2.Template | None) -> int | None:
    line = None
    while traceback is not None and template is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line
