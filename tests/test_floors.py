"""The ground plan: every module has a room, every room a floor, and no import goes up or round in a circle."""

import ast
import graphlib
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The lowest first. Rooms that share a floor do not know each other.
FLOORS = [
    {"support"},
    {"nets"},
    {"pair"},
    {"graphs", "data"},
    {"objectives", "models"},
    {"guides", "estimators", "runs"},
    {"training"},
    {"checking", "comparison", "generate", "imputation", "weights"},
    {"diagnostics", "truth"},
    {"selfcheck"},
    {"cli"},
]
# What works for any pair, and so knows none.
ENGINE = {room for floor in FLOORS for room in floor} - {"models", "guides", "truth", "selfcheck", "cli"}
# Words that a user types: modules of their own at the root of the package.
WORDS = {"checking", "comparison", "generate", "imputation", "nets", "weights"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "pvae" else ("pvae", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path
    for top in ("pvae", "models", "guides")
    for path in (ROOT / top).rglob("*.py")
    if not any(part.is_symlink() for part in path.parents)
}


def imports_of(module: str) -> set[str]:
    """The modules of pvae's that a module imports, anywhere in it but for its types."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            found |= {name if (name := f"{node.module}.{each.name}") in MODULES else node.module for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return {name for name in found if name and name in MODULES} - {"pvae"}


ARROWS = {module: imports_of(module) for module in MODULES if module not in ("pvae", "pvae.__main__")}


def room_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room_of(module) in floor)


def goes_up(module: str, other: str) -> bool:
    """Whether an import leads to a floor above, or to another room of the same floor."""
    return room_of(other) != room_of(module) and floor_of(other) >= floor_of(module)


def test_no_import_goes_up():
    assert not [(module, other) for module, others in ARROWS.items() for other in others if goes_up(module, other)]


def test_no_import_goes_round_in_a_circle():
    # A package's own module gathers what its modules offer, and they do not ask it back.
    try:
        circle = graphlib.TopologicalSorter(ARROWS).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle is None


def test_the_engine_knows_no_model_and_no_guide():
    for module, others in ARROWS.items():
        if room_of(module) in ENGINE:
            assert not {room_of(other) for other in others} & {"models", "guides"}, module


def test_the_root_holds_words_that_a_user_types_alone():
    at_root = {path.stem for path in (ROOT / "pvae").glob("*.py")}
    assert at_root == WORDS | {"__init__", "__main__"}


def lines_of_code(path: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    text = path.read_text()
    words = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            words.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in words]
    return sum(bool(line) and not line.startswith("#") for line in code)


def test_no_module_is_long():
    sizes = {module: lines_of_code(path) for module, path in MODULES.items()}
    assert max(sizes.values()) <= 250, max(sizes, key=sizes.get)
    assert statistics.median(sizes.values()) <= 100
