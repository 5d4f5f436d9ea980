"""Conifer: instructions whose constraints grow from level to level, as conversations from easy to hard."""

from dynamics.data.conifer.arrangement import ARRANGEMENTS, Arrangement, arrange
from dynamics.data.conifer.feedback import external, internal
from dynamics.data.conifer.levels import Conversation, Exchange, LevelItem, assemble, read_items
from dynamics.data.conifer.mix import WithShareGpt
from dynamics.data.conifer.rehearsal import ConiferRehearsal
from dynamics.data.conifer.source import PUBLISHED_COUNTS, Conifer

__all__ = [
    "ARRANGEMENTS", "PUBLISHED_COUNTS", "Arrangement", "Conifer", "ConiferRehearsal", "Conversation", "Exchange",
    "LevelItem", "WithShareGpt", "arrange", "assemble", "external", "internal", "read_items",
]  # fmt: skip
