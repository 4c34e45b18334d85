"""The house: floors, cycles, sizes, and what nobody may do; read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import steadysam

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "steadysam"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text("utf-8")) for file in FILES}

# the floor of each module or folder directly below the package; a name that is not here is an error, so that
# whoever adds a file decides where it stands
FLOORS = {
    **dict.fromkeys(("types", "geometry", "errors", "files", "locks", "__init__"), 0),
    **dict.fromkeys(("data", "prompts", "losses", "metrics", "statistics", "embeddings", "augment", "cachefolder"), 1),
    "backbones": 2,
    "detection": 2,
    "methods": 3,
    **dict.fromkeys(
        (
            "config",
            "runs",
            "checkpoints",
            "logs",
            "loop",
            "averaging",
            "optimisation",
            "trainable",
            "training_data",
            "starting",
            "training",
            "segmenting",
            "outputs",
            "prediction",
            "jobs",
        ),
        4,
    ),
    **dict.fromkeys(("evaluate", "summary", "comparison", "provenance", "audit", "phantom"), 4),
    # clicks without a run, and pretraining, whose drawn images are configured like everything else
    **dict.fromkeys(("interactive", "clicks", "synthetic", "pretraining", "bench"), 4),
    **dict.fromkeys(("box_prompts", "box_files", "combining", "labelwise"), 4),
    "external": 4,
    **dict.fromkeys(("report", "demo", "cli", "__main__"), 5),
}
LEAVES = ("data", "prompts", "losses", "metrics", "embeddings")
SHARED_METHOD_FILES = {"contract", "adaptation", "samples", "slicewise", "neighbours", "boxes", "video"}
SHARED_METHOD_FILES |= {"networks", "dense", "hybrid", "detecting", "mosaic", "feature_prompting"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 60, 8
# one thing in one place: the words of the house; the metrics with their table; four commands with their help
LONGER = {"types.py": 360, "metrics.py": 340, "cli/prompts.py": 320}
# the noise model of a tracing: options by name, as `--set` gives them
MORE_PARAMETERS = {"centerline": 10}


def dotted(file: Path) -> str:
    """`steadysam.data.cases` for a file."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file): file for file in FILES}


def imports(file: Path, *, at_start: bool = False) -> Iterator[tuple[int, str]]:
    """(line, module of this package) of every import; `at_start`: not those in functions or for types."""
    todo: list[ast.AST] = [TREES[file]]
    while todo:
        node = todo.pop()
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "steadysam")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} relative import"
            if (node.module or "").split(".")[0] == "steadysam":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield node.lineno, whole if whole in MODULES else str(node.module)


def part(module: str) -> str:
    """The module or folder directly below the package."""
    return [*module.split("."), "__init__"][1]


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(TREES[file]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def calls(file: Path) -> Iterator[tuple[ast.Call, str]]:
    return ((n, ast.unparse(n.func)) for n in ast.walk(TREES[file]) if isinstance(n, ast.Call))


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def test_every_part_has_a_floor():
    assert sorted({part(module) for module in MODULES} - set(FLOORS)) == []


def test_imports_go_down_only():
    wrong = []
    for module, file in MODULES.items():
        if module == "steadysam":  # the lazy table of public names; `test_start_up` checks it
            continue
        for line, target in imports(file):
            if FLOORS[part(target)] > FLOORS[part(module)]:
                wrong.append(f"{place(file, line)} imports {target}")
    assert wrong == []


def test_leaves_do_not_import_each_other():
    wrong = [
        f"{place(file, line)} imports {target}"
        for module, file in MODULES.items()
        for line, target in imports(file)
        if part(module) in LEAVES and part(target) in LEAVES and part(module) != part(target)
    ]
    assert wrong == []


def test_methods_do_not_import_each_other():
    def method(module: str) -> str | None:
        names = module.split(".")
        alone = names[1:2] != ["methods"] or len(names) < 3 or names[2] in SHARED_METHOD_FILES
        return None if alone else names[2]

    wrong = [
        f"{place(file, line)} imports {target}"
        for module, file in MODULES.items()
        for line, target in imports(file)
        if method(module) and method(target) and method(module) != method(target)
    ]
    assert wrong == []


def test_no_import_cycle():
    edges = {module: sorted({t for _, t in imports(file, at_start=True)}) for module, file in MODULES.items()}
    edges["steadysam"] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in edges[module]:
                if target != module:
                    visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_files_are_short():
    long = {}
    for file in FILES:
        count = len(file.read_text("utf-8").splitlines())
        if count > LONGER.get(str(file.relative_to(PACKAGE)), MOST_LINES):
            long[str(file.relative_to(ROOT))] = count
    assert long == {}


def test_functions_are_short_and_take_few_parameters():
    wrong = []
    for file in FILES:
        for function in functions(file):
            lines = (function.end_lineno or 0) - function.lineno + 1
            doc = function.body[0] if ast.get_docstring(function) else None
            if doc is not None:  # the length of an explanation is no fault, least of all on the command line
                lines -= (doc.end_lineno or 0) - doc.lineno + 1
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([a for a in named if a.arg not in ("self", "cls")])
            if lines > MOST_FUNCTION_LINES:
                wrong.append(f"{place(file, function.lineno)} {function.name}: {lines} lines")
            # the options of a command are its interface: they are many by nature, and all by name
            command = file.parent.name == "cli" and len(arguments.kwonlyargs) > 0
            if count > MORE_PARAMETERS.get(function.name, MOST_PARAMETERS) and not command:
                wrong.append(f"{place(file, function.lineno)} {function.name}: {count} parameters")
    assert wrong == []


def test_nobody_prints_but_the_command_line():
    wrong = [
        place(file, call.lineno)
        for file in FILES
        for call, name in calls(file)
        if file.parent.name != "cli" and name in ("print", "pprint", "sys.stdout.write")
    ]
    assert wrong == []


FORBIDDEN_CALLS = (
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "os.system",
    "__import__",
    "pd.read_pickle",
)
FORBIDDEN_MODULES = ("pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "torchvision")


def test_nothing_is_unpickled_or_evaluated():
    wrong = []
    for file in FILES:
        for call, name in calls(file):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            loads = name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False"
            if name in FORBIDDEN_CALLS or loads or given.get("allow_pickle", "False") != "False":
                wrong.append(f"{place(file, call.lineno)} {name}")
            if "shell" in given:
                wrong.append(f"{place(file, call.lineno)} shell")
        for node in ast.walk(TREES[file]):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            wrong += [f"{place(file, node.lineno)} {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
    assert wrong == []


WRITERS = (
    "write_text",
    "write_bytes",
    "to_filename",
    "tofile",
    "savez",
    "savez_compressed",
    "savetxt",
    "save_file",
)


def writes(call: ast.Call, name: str) -> bool:
    """Whether a call writes a file by itself: `open` for writing, or a library's writer."""
    if name in ("open", "gzip.open", "io.open") or name.endswith(".open"):
        modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
        return any(isinstance(m, ast.Constant) and set("wax+") & set(str(m.value)) for m in modes)
    head, _, last = name.rpartition(".")
    if last in WRITERS and head:  # our own are called by their plain names
        return True
    return name in ("nib.save", "nibabel.save", "np.save", "numpy.save", "sitk.WriteImage", "shutil.copy")


def producers(tree: ast.AST) -> set[ast.AST]:
    """Everything that stands in functions handed to `atomic_write`, which gives them a temporary name."""
    handed: set[str] = set()
    nodes: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("atomic_write"):
            for value in node.args[1:]:
                handed |= {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
                nodes |= set(ast.walk(value))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in handed:
            nodes |= set(ast.walk(node))
    return nodes


def test_all_writing_goes_through_files():
    wrong = []
    for file in FILES:
        if file.name == "files.py" and file.parent == PACKAGE:
            continue
        allowed = producers(TREES[file])
        wrong += [
            f"{place(file, call.lineno)} {name}"
            for call, name in calls(file)
            if call not in allowed and writes(call, name)
        ]
    assert wrong == []


def test_no_drawer_for_odds_and_ends():
    assert [f.name for f in FILES if f.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_no_global_random_state():
    wrong = []
    for file in FILES:
        for call, name in calls(file):
            head, _, last = name.rpartition(".")
            numpy_state = head in ("np.random", "numpy.random") and last not in ("default_rng", "Generator")
            if numpy_state or head == "random" or name == "np.random.default_rng" and not call.args:
                wrong.append(f"{place(file, call.lineno)} {name}")
    assert wrong == []


def test_errors_that_users_meet_are_ours():
    """`assert` is for what cannot happen; nothing a user gives is judged by it, as `python -O` removes it."""
    wrong = [place(f, n.lineno) for f in FILES for n in ast.walk(TREES[f]) if isinstance(n, ast.Assert)]
    assert wrong == []


def test_every_module_and_public_function_says_what_it_is():
    wrong = [place(f, 1) for f in FILES if f.name != "__init__.py" and not ast.get_docstring(TREES[f])]
    for file in FILES:
        for node in TREES[file].body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                wrong.append(place(file, node.lineno))
    assert wrong == []


def test_public_names_load_and_hide_no_module():
    modules = {file.stem if file.stem != "__init__" else file.parent.name for file in FILES if file.parent == PACKAGE}
    folders = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
    names = [name for name in steadysam.__all__ if name != "__version__"]
    assert set(names) & (modules | folders) == set()
    assert {name: getattr(steadysam, name).__module__ for name in names} == steadysam._HOME
    assert set(names) <= set(dir(steadysam))
    with pytest.raises(AttributeError, match="no attribute 'segmentt'"):
        _ = steadysam.segmentt  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "code",
    [
        "import steadysam; steadysam.Volume, steadysam.read_prompts, steadysam.read_volume",
        "import steadysam.cli, steadysam.cli.prompts, steadysam.cli.info; steadysam.cli.info.collect()",
        "import steadysam.prompts.check, steadysam.prompts.simulate, steadysam.prompts.corrupt",
    ],
)
def test_start_up_without_torch(code):
    heavy = ("torch", "transformers", "peft", "accelerate", "matplotlib")
    check = f"{code}\nimport sys\nsys.exit(' '.join(n for n in {heavy} if n in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
