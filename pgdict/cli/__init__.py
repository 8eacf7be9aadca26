"""What can be done from a shell."""

from pgdict.cli import items, many, shell, whole  # in the order that help has
from pgdict.cli.program import Commands, app

__all__ = ["Commands", "app", "items", "many", "shell", "whole"]
