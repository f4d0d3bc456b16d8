"""What a mutant changes: operators of cosmic-ray, and three for formulas written as calls."""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

__all__ = ["Mutant", "mutants_of"]

# Boundaries and opposites: further replacements of the same operator die by the same tests.
CORE = re.compile(
    r"core/(ReplaceBinaryOperator_("
    r"Add_(Sub|Mul)|Sub_(Add|Mul)|Mul_(Div|Add)|Div_(Mul|Sub)|FloorDiv_(Div|Mul)|Mod_(FloorDiv|Mul)"
    r"|Pow_(Mul|Div)|LShift_RShift|RShift_LShift|BitAnd_BitOr|BitOr_BitAnd|BitXor_(BitAnd|BitOr))"
    r"|ReplaceComparisonOperator_("
    r"Eq_NotEq|NotEq_Eq|Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt)|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_Delete_(USub|Not|Invert)|AddNot|Replace(True|False|And|Or|Break|Continue)With\w+"
    r"|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)


# Calls that ask a question, and arguments that could not stand for the result of a call.
_QUESTIONS = {"isinstance", "getattr", "hasattr", "issubclass"}
_NO_RESULT = {"argument", "string", "strings", "keyword", "number"}
# What is left of `torch.abs(x)` or `self.size()` without the call is no value.
_NO_VALUE = {"torch", "math", "hashlib", "datetime", "unicodedata", "nn", "self", "super"}


class Mutant(NamedTuple):
    """One small change of a file.

    Attributes:
        line: Where it is.
        before: The lines that changed, without indentation.
        after: What they became; empty where they are gone.
        source: The whole file with the change.
    """

    line: int
    before: str
    after: str
    source: str


def _call_parts(node: Any) -> list[Any]:
    """Name, attributes, calls and subscripts that follow each other; empty for anything else."""
    return list(node.children) if node.type in ("atom_expr", "power") else []


def _is_call(part: Any) -> bool:
    return part.type == "trailer" and part.children[0].value == "("


class TakeArgument(Operator):
    """A call becomes one of its arguments: ``tanh(x)`` becomes ``x``."""

    def _arguments(self, node: Any) -> list[Any]:
        parts = _call_parts(node)
        if not parts or not _is_call(parts[-1]) or len(parts[-1].children) < 3:
            return []
        if node.parent.type == "raise_stmt" or parts[0].get_code().strip() in _QUESTIONS:
            return []
        inner = parts[-1].children[1]
        items = inner.children[::2] if inner.type == "arglist" else [inner]
        return [item for item in items if item.type not in _NO_RESULT]

    def mutation_positions(self, node: Any) -> list[Any]:
        """One for each positional argument."""
        return [(item.start_pos, item.end_pos) for item in self._arguments(node)]

    def mutate(self, node: Any, index: int) -> Any:
        """The argument in brackets."""
        code = self._arguments(node)[index].get_code(include_prefix=False)
        prefix = node.get_first_leaf().prefix
        return Name(f"({code})", node.start_pos, prefix)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """One."""
        return (Example("f(x)", "(x)"),)


class DropCall(Operator):
    """A method is not called: ``x.abs().sum()`` becomes ``x.sum()``."""

    def _calls(self, node: Any) -> list[int]:
        parts = _call_parts(node)
        bare = bool(parts) and parts[0].get_code().strip() in _NO_VALUE
        return [
            place
            for place in range(3 if bare else 1, len(parts) - 1)
            if parts[place].type == "trailer"
            and parts[place].children[0].value == "."
            and _is_call(parts[place + 1])
        ]

    def mutation_positions(self, node: Any) -> list[Any]:
        """One for each method that is called."""
        return [(node.start_pos, node.end_pos) for _ in self._calls(node)]

    def mutate(self, node: Any, index: int) -> Any:
        """Without attribute and brackets."""
        place = self._calls(node)[index]
        del node.children[place : place + 2]
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """One."""
        return (Example("x.f().g", "x.g"),)


class DropStatement(Operator):
    """A statement does nothing: a call for its effect, a raise, a second assignment to a name."""

    def _droppable(self, node: Any) -> bool:
        if node.type != "simple_stmt":
            return False
        first = node.children[0]
        if first.type == "raise_stmt":
            return True
        if first.type == "expr_stmt":
            target = first.children[0].get_code().strip()
            sign = first.children[1]
            augmented = sign.type == "operator" and sign.value != "="
            again = re.search(rf"\b{re.escape(target)}\b", first.children[-1].get_code())
            return augmented or bool(again) or "." in target or "[" in target
        parts = _call_parts(first)
        return bool(parts) and _is_call(parts[-1])

    def mutation_positions(self, node: Any) -> list[Any]:
        """The statement."""
        return [(node.start_pos, node.end_pos)] if self._droppable(node) else []

    def mutate(self, node: Any, index: int) -> Any:
        """``pass``."""
        first = node.children[0]
        node.children[0] = Name("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        """One."""
        return (Example("f(x)\n", "pass\n"),)


def _operators() -> list[Operator]:
    core = [get_operator(name)() for name in operator_names() if CORE.fullmatch(name)]
    return [*core, TakeArgument(), DropCall(), DropStatement()]


_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Is: ast.IsNot, ast.IsNot: ast.Is}
_OPPOSITE |= {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In}


class _Normal(ast.NodeTransformer):
    """One spelling for what means the same.

    Annotations are text here (``from __future__ import annotations``), so nothing reads them.
    """

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare):
            opposite = _OPPOSITE.get(type(inner.ops[0]))
            if opposite is not None and len(inner.ops) == 1:
                return self.generic_visit(ast.Compare(inner.left, [opposite()], inner.comparators))
        return self.generic_visit(node)


def _meaning(source: str) -> str:
    return ast.dump(_Normal().visit(ast.parse(source)))


def mutants_of(source: str) -> Iterator[Mutant]:
    """Every mutant of a file that means something else than the file and than those before it."""
    seen = {_meaning(source)}
    for operator in _operators():
        for occurrence in itertools.count():
            mutated = mutate_code(source, operator, occurrence)
            if mutated is None:
                break
            try:
                meaning = _meaning(mutated)
            except SyntaxError:
                continue
            if meaning in seen:
                continue
            seen.add(meaning)
            mutant = _mutant(source, mutated)
            # Assertions are there for mypy.
            if "not not" not in mutant.after and not mutant.before.startswith("assert "):
                yield mutant


def _mutant(source: str, mutated: str) -> Mutant:
    old, new = source.splitlines(), mutated.splitlines()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    first, last = changes[0], changes[-1]
    before = " ".join(line.strip() for line in old[first[1] : last[2]])
    after = " ".join(line.strip() for line in new[first[3] : last[4]])
    after = re.sub(r"(?<=[\[(-]) ", "", re.sub(r"  +", " ", after))
    return Mutant(first[1] + 1, before, after, mutated)
