"""For the Python page: a settings field `x: int = option(3, "help")` is shown as `x: int = 3` with its help below it."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class Options(griffe.Extension):
    """Reads the help text out of `misdirect.config.option`, where it stands for the command line too."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) == "option":
            default, text = call.arguments
            attr.value = default
            attr.docstring = griffe.Docstring(ast.literal_eval(str(text)), parent=attr)
