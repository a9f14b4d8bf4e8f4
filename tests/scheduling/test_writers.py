"""Each field of a sequence has one writer, as the docstring of `SequenceState` says."""

from __future__ import annotations

import ast
from pathlib import Path

from asgl import scheduling
from asgl.scheduling.sequence import SequenceState

WRITERS = {
    "kv_cache": {"slots", "computed", "node", "covered", "lender", "borrowed", "borrowers"},
    "generation": {"tokens", "grammar"},
    "step_builder": {"pending"},
    "radix_cache": {"matched", "watched_at"},
    "scheduler": {"state", "admissions", "retracted", "cached_tokens", "poisoned"},
}
AT_BIRTH = {
    *("request", "id", "prompt", "namespace", "most_computed"),
    *("tree", "arrival", "arrived_at"),
}
MUTATORS = {"append", "extend", "remove", "clear", "pop", "insert"}
SEQUENCES = {"sequence", "borrower", "lender", "other", "one", "watcher", "each", "victim"}


def written(tree: ast.AST) -> set[str]:
    """Fields of anything that is named like a sequence that the code assigns, deletes from, or
    changes in place."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value] if node.func.attr in MUTATORS else []
        elif isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                place = part.value if isinstance(part, ast.Subscript) else part
                if isinstance(place, ast.Attribute) and ends_in_sequence(place.value):
                    found.add(place.attr)
    return found


def ends_in_sequence(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in SEQUENCES


def test_each_field_has_one_writer():
    fields = set(SequenceState.__slots__)
    assert set().union(*WRITERS.values(), AT_BIRTH) == fields
    for module in Path(scheduling.__path__[0]).glob("*.py"):
        if module.stem != "sequence":
            wrote = written(ast.parse(module.read_text(encoding="utf-8"))) & fields
            assert wrote == WRITERS.get(module.stem, set()), module.name
