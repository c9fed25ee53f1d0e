"""Playground: a base and adapters beside each other, the same question, votes and corrections."""

from __future__ import annotations

import asyncio

from lorakit.runs.adapters import find_adapters
from lorakit.runs.paths import split_paths
from lorakit.studio.context import current
from lorakit.studio.frame import page
from lorakit.studio.live import every
from lorakit.studio.pages.playground.answers import AnswersPart
from lorakit.studio.pages.playground.models import ModelsPart
from lorakit.studio.pages.playground.other_programs import OtherProgramsPart
from lorakit.studio.pages.playground.question import QuestionPart
from lorakit.studio.served_models import playground_of

_LOOK_EVERY_S = 0.15


@page("/playground", "Playground")
async def playground(runs: str = "", mixture: str = "") -> None:
    """Try models on a text.

    Args:
        runs: Paths of runs or adapters below the folder, separated by commas; see `split_paths`.
        mixture: Name of a mixture that the page of adapters has made.
    """
    studio = current()
    state = playground_of(studio)
    wanted = [studio.path(name) for name in split_paths(runs)]
    found = await asyncio.to_thread(find_adapters, studio.root)
    models = ModelsPart(studio, state, found, wanted, mixture)
    question = QuestionPart(state)
    answers = AnswersPart(studio, state)
    others = OtherProgramsPart(studio, state)

    def look() -> None:
        models.look()
        question.look()
        answers.look()
        others.look()

    look()
    every(_LOOK_EVERY_S, look, is_awaited=lambda: state.is_answering or state.loading is not None)
