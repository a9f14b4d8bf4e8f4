"""The error tree is what its drawing says."""

from __future__ import annotations

import inspect
import re

from asgl import errors


def drawn() -> dict[str, tuple[str, list[str], set[str]]]:
    """From the drawing: name -> (first base by indentation, further bases in brackets, attributes
    written as `.name`)."""
    tree: dict[str, tuple[str, list[str], set[str]]] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^( {4,})([A-Z]\w+Error)(?:\((\w+)\))?(?:\s|$)", line)
        if match is None:
            continue
        indent, name, other = len(match[1]), match[2], match[3]
        while above and above[-1][0] >= indent:
            above.pop()
        bases = [above[-1][1]] if above else []
        attributes = set(re.findall(r" \.(\w+)", line[match.end() - 1 :]))
        tree[name] = (bases[0] if bases else "", [other] if other else [], attributes)
        above.append((indent, name))
    return tree


def test_the_tree_is_as_drawn():
    tree = drawn()
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    assert set(tree) == set(classes)
    for name, (parent, others, attributes) in tree.items():
        bases = [base.__name__ for base in classes[name].__bases__]
        assert bases == ([parent] if parent else []) + others or (
            not parent and bases == (others or ["Exception"])
        ), name
        init = classes[name].__init__  # of exceptions without one of ours it is no function
        keywords = set(inspect.getfullargspec(init).kwonlyargs if inspect.isfunction(init) else ())
        inherited = set().union(
            *(
                tree[base.__name__][2]
                for base in classes[name].__mro__
                if base is not classes[name] and base.__name__ in tree
            )
        )
        assert attributes == keywords - inherited, name


def test_errors_carry_their_subject():
    assert errors.ContextLengthError("m", tokens=3, limit=2).tokens == 3
    assert errors.CapacityError("m", needed=3, capacity=2, request_id=7).request_id == 7
    assert errors.VariableError("no such", name="x").name == "x"
    assert str(errors.VariableError("no such", name="x")) == "no such"
    assert isinstance(errors.VariableError("no such"), KeyError)
    assert isinstance(errors.ConfigError("bad"), ValueError)
    assert not issubclass(errors.InternalError, errors.AsglError)
