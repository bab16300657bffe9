"""Compiles a template so that its work is metered and its output traced.

The generated code calls functions of the environment: `print_value` for printed expressions, `join_values` for `~`,
and, where it is traced, `trace_literal` for template text. One pass over the tree counts the passes of loops and what
is compared; the other tells the tracer which message a loop is at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst


class MeteredCodeGenerator(CodeGenerator):
    """Jinja's code generator with output that the environment sees before it is made."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        self.write("environment.print_value(")

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # Jinja names its visitors by node
        """Write `a ~ b` as a join by the environment."""
        self.write("environment.join_values((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        """Write a call; those that the passes below put in go straight to the environment, which is no template's."""
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class TracingCodeGenerator(MeteredCodeGenerator):
    """The same with template text that is known as such."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.trace_literal({''.join(map(str, group))!r})"

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write `a in b` as a call of the environment: Python would look into both without asking them."""
        if len(node.ops) != 1 or node.ops[0].op not in {"in", "notin"}:
            super().visit_Compare(node, frame)
            return
        self.write("(not " if node.ops[0].op == "notin" else "(")
        self.write("environment.contains(")
        self.visit(node.expr, frame)
        self.write(", ")
        self.visit(node.ops[0].expr, frame)
        self.write("))")


def meter_tree(tree: nodes.Template) -> None:
    """Count every pass of a loop, and what is compared or used as a key where neither side is written out, in place."""
    for loop in tree.find_all(nodes.For):
        loop.body.insert(0, _call("meter_step", loop, []))
    for node in list(tree.find_all(nodes.Compare)):
        operands = [operand.expr for operand in node.ops]
        if not any(isinstance(side, nodes.Const) for side in (node.expr, *operands)):
            node.expr = _looked(node.expr)
            for operand in node.ops:
                operand.expr = _looked(operand.expr)
    for pair in tree.find_all(nodes.Pair):
        pair.key = pair.key if isinstance(pair.key, nodes.Const) else _looked(pair.key)


def _looked(value: nodes.Expr) -> nodes.Expr:
    call = nodes.Call(nodes.EnvironmentAttribute("meter_look"), [value], [], None, None)
    call.set_lineno(value.lineno, override=True)
    return call


def stamp_loops(node: nodes.Node) -> None:
    """Make every loop tell the tracer which message it is at, in place.

    `{% for m in … %}BODY{% endfor %}` becomes push, `{% for m in … %}`enter(m) BODY`{% endfor %}`, pop. A loop over
    indices enters where its body says `{% set m = messages[i] %}`.
    """
    for name in node.fields:
        value = getattr(node, name)
        if isinstance(value, list) and value and isinstance(value[0], nodes.Node):
            setattr(node, name, list(_stamped(value)) if isinstance(value[0], nodes.Stmt) else value)
    for child in node.iter_child_nodes():
        stamp_loops(child)
    if isinstance(node, nodes.For):
        node.body.insert(0, _call("trace_enter", node, names_of(node.target)))
        indices = set(names_of(node.target))
        node.body[1:] = [part for statement in node.body[1:] for part in _entered_by_index(statement, indices)]


def _stamped(statements: list[nodes.Node]) -> Iterator[nodes.Node]:
    for statement in statements:
        if isinstance(statement, nodes.For):
            yield _call("trace_push", statement, [])
            yield statement
            yield _call("trace_pop", statement, [])
        else:
            yield statement


def _entered_by_index(statement: nodes.Node, indices: set[str]) -> list[nodes.Node]:
    """`{% set m = messages[i] %}` followed by enter(m), where `i` is the loop's own index."""
    if isinstance(statement, nodes.Assign) and isinstance(statement.node, nodes.Getitem):
        arg = statement.node.arg
        if isinstance(arg, nodes.Name) and arg.name in indices:
            return [statement, _call("trace_enter", statement, names_of(statement.target))]
    return [statement]


def names_of(target: nodes.Node) -> list[str]:
    """The names that a loop or an assignment binds."""
    if isinstance(target, nodes.Name):
        return [target.name]
    return [name for child in target.iter_child_nodes() for name in names_of(child)]


def _call(function: str, at: nodes.Node, names: list[str]) -> nodes.ExprStmt:
    arguments: list[nodes.Expr] = [nodes.Name(name, "load") for name in names]
    call = nodes.Call(nodes.EnvironmentAttribute(function), arguments, [], None, None)
    statement = nodes.ExprStmt(call)
    statement.set_lineno(at.lineno, override=True)
    return statement
