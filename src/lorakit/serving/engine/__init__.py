"""Answers requests together on one model, each row with its adapter."""

from lorakit.serving.engine.engine import Engine
from lorakit.serving.engine.request import RequestHandle
from lorakit.serving.engine.settings import EngineHooks, EngineSettings, EngineStats

__all__ = ["Engine", "EngineHooks", "EngineSettings", "EngineStats", "RequestHandle"]
