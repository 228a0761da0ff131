"""Go's text/template for ``--format``: the language, Docker's functions, and the wording of its errors.

Values are what JSON gives (dict, list, str, int, float, bool, None) and `Fields`, an object with lazily computed
fields. They print as Go's fmt prints them: ``map[a:b]``, ``[a b]``, ``<nil>``, and ``<no value>`` for what is missing.
"""

from __future__ import annotations

import json
import re

from engine.cli.template_values import FUNCTIONS, MISSING, Fields, Missing, escape_html, go_type, quote, to_text, truth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

# Where the API's types have a Go map, a missing key is a value that is absent; elsewhere it is a mistake.
MAPS = frozenset(
    "Labels Options Networks Ports ExposedPorts Volumes Sysctls Tmpfs Annotations DriverOpts PortBindings Config "
    "Containers StorageOpt Details Attributes IPAMConfig AuxiliaryAddresses Data Status".split()
)
LISTS = frozenset(
    "Entrypoint Cmd Env Binds OnBuild CapAdd CapDrop Dns DnsOptions DnsSearch ExtraHosts GroupAdd Links VolumesFrom "
    "Mounts SecurityOpt Devices DeviceRequests DeviceCgroupRules Ulimits Args RepoTags RepoDigests Layers Aliases "
    "DNSNames ExecIDs MaskedPaths ReadonlyPaths Test Log Shell Names BlkioWeightDevice Warnings".split()
)
OPTIONAL = frozenset(
    "Health SizeRw SizeRootFs Healthcheck StopSignal StopTimeout Init Annotations Mounts Tmpfs Shell ArgsEscaped "
    "NetworkDisabled MacAddress OnBuild GraphDriver Storage ImageManifestDescriptor UsageData Options Error".split()
)


class TemplateError(Exception):
    """The template is wrong or does not fit the value; the text is Go's."""


_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<char>'(?:\\.|[^'\\])+')"""
    r"""|(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?))|(?P<field>\.[A-Za-z_]\w*)"""
    r"""|(?P<variable>\$\w*)|(?P<word>[A-Za-z_]\w*)|(?P<mark>:=|[|(),=.])"""
)
__all__ = ["Fields", "Template", "TemplateError", "escape_html", "quote"]
_KEYWORDS = {"if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"}


class Token:
    """One word of an action and where it stands in the text."""

    __slots__ = ("kind", "position", "text")

    def __init__(self, kind: str, text: str, position: int) -> None:
        self.kind = kind
        self.text = text
        self.position = position


class Node:
    """Part of an expression: its kind, value, operands, and source for error messages."""

    __slots__ = ("kind", "operands", "position", "source", "value")

    def __init__(self, kind: str, value: Any, position: int, source: str, operands: Sequence[Any] = ()) -> None:
        self.kind = kind
        self.value = value
        self.position = position
        self.source = source
        self.operands = list(operands)


class _Leave(Exception):
    def __init__(self, again: bool) -> None:
        self.again = again


class Template:
    """A parsed template. Raises `TemplateError` for bad syntax."""

    def __init__(self, text: str, functions: dict[str, Callable[..., Any]] | None = None) -> None:
        self.text = text
        self.functions = FUNCTIONS if functions is None else {**FUNCTIONS, **functions}
        self._defined: dict[str, list[Any]] = {}
        self._pieces = list(self._split())
        self._at = 0
        self._loops = 0
        self._body, stop = self._block()
        if stop is not None:
            raise self._syntax(stop[1], f"unexpected {{{{{stop[0]}}}}}")

    def _line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def _syntax(self, position: int, problem: str) -> TemplateError:
        return TemplateError(f"template: :{self._line(position)}: {problem}")

    def _failure(self, node: Node, problem: str) -> TemplateError:
        column = node.position - (self.text.rfind("\n", 0, node.position) + 1)
        source = node.source if len(node.source) <= 20 else node.source[:20] + "..."
        return TemplateError(f'template: :{self._line(node.position)}:{column}: executing "" at <{source}>: {problem}')

    def _split(self) -> Iterator[tuple[str, Any, int]]:
        """Texts and actions, with the white space that ``{{-`` and ``-}}`` eat already gone."""
        text, position, trim = self.text, 0, False
        while True:
            start = text.find("{{", position)
            piece = text[position:] if start < 0 else text[position:start]
            if trim:
                piece = piece.lstrip(" \t\r\n")
            left = start >= 0 and text[start + 2 : start + 3] == "-" and text[start + 3 : start + 4] in tuple(" \t\r\n")
            if left:
                piece = piece.rstrip(" \t\r\n")
            if piece:
                yield "text", piece, position
            if start < 0:
                return
            inside = start + (3 if left else 2)
            body = text[inside:].lstrip()
            if body.startswith("/*"):
                end = text.find("*/", inside)
                if end < 0:
                    raise self._syntax(start, "unclosed comment")
                close = re.compile(r"\s*(-?)\}\}").match(text, end + 2)
                if close is None:
                    raise self._syntax(start, "comment ends before closing delimiter")
                trim, position = bool(close[1]), close.end()
                continue
            tokens, position, trim = self._tokens(inside, start)
            yield "action", tokens, start

    def _tokens(self, position: int, start: int) -> tuple[list[Token], int, bool]:
        text, depth = self.text, 0
        tokens: list[Token] = []
        while True:
            trim = text[position : position + 1] in tuple(" \t\r\n") and re.match(r"\s+-\}\}", text[position:])
            if trim:
                return tokens, position + trim.end(), True
            if text.startswith("}}", position):
                if depth:
                    raise self._syntax(position, "unclosed left paren")
                return tokens, position + 2, False
            if position >= len(text):
                raise self._syntax(position, "unclosed action")
            match = _TOKEN.match(text, position)
            if match is None:
                character = text[position]
                if character in "\"'`":
                    kind = {'"': "unterminated quoted string", "'": "unterminated character constant",
                            "`": "unterminated raw quoted string"}[character]  # fmt: skip
                    raise self._syntax(position, kind)
                raise self._syntax(position, f'unexpected "{character}" in operand' if tokens else
                                   f'unexpected "{character}" in command')  # fmt: skip
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            if depth < 0:
                raise self._syntax(position, "unexpected right paren")
            tokens.append(Token(match.lastgroup or "", match[0], position))
            position = match.end()

    def _block(self) -> tuple[list[Any], tuple[str, int, list[Token]] | None]:
        """Statements up to an ``end`` or ``else``, which is returned."""
        body: list[Any] = []
        while self._at < len(self._pieces):
            kind, content, position = self._pieces[self._at]
            self._at += 1
            if kind == "text":
                body.append(content)
                continue
            tokens = [token for token in content if token.kind != "space"]
            if not tokens:
                raise self._syntax(position, "missing value for command")
            word = tokens[0].text if tokens[0].kind == "word" else ""
            if word in ("end", "else"):
                return body, (word, position, content[1:])
            if word in ("if", "with", "range"):
                body.append(self._branch(word, content[1:], position))
            elif word in ("break", "continue"):
                if not self._loops:
                    raise self._syntax(position, f"{{{{{word}}}}} outside {{{{range}}}}")
                body.append((word,))
            elif word in ("define", "template", "block"):
                body.append(self._named(word, tokens, content, position))
            else:
                body.append(("print", *self._pipeline(content, position)))
        return body, None

    def _close(self, word: str, position: int) -> list[Any]:
        body, stop = self._block()
        if stop is None:
            raise self._syntax(len(self.text), "unexpected EOF")
        if stop[0] != "end":
            raise self._syntax(stop[1], f"unexpected {{{{{stop[0]}}}}} in {word}")
        return body

    def _named(self, word: str, tokens: list[Token], content: list[Token], position: int) -> Any:
        if len(tokens) < 2 or tokens[1].kind != "string":
            raise self._syntax(position, f"missing name in {word}")
        name = _unquote(tokens[1].text)
        rest = content[content.index(tokens[1]) + 1 :]
        if word == "define":
            self._defined[name] = self._close(word, position)
            return ""
        pipe = self._pipeline(rest, position)[2] if len(tokens) > 2 else None
        if word == "block":
            self._defined[name] = self._close(word, position)
        return ("template", name, pipe, Node("template", name, position, f"template {tokens[1].text}"))

    def _branch(self, word: str, content: list[Token], position: int) -> Any:
        if not any(token.kind != "space" for token in content):
            raise self._syntax(position, f"missing value for {word}")
        pipeline = self._pipeline(content, position)
        self._loops += word == "range"
        body, stop = self._block()
        self._loops -= word == "range"
        if stop is None:
            raise self._syntax(len(self.text), "unexpected EOF")
        otherwise: list[Any] = []
        if stop[0] == "else":
            rest = [token for token in stop[2] if token.kind != "space"]
            if rest and rest[0].text in ("if", "with"):
                inner = stop[2][stop[2].index(rest[0]) + 1 :]
                otherwise = [self._branch(rest[0].text, inner, stop[1])]
            else:
                otherwise = self._close(word, position)
        return (word, *pipeline, body, otherwise)

    def _pipeline(self, content: list[Token], position: int) -> tuple[list[str], bool, Node]:
        """Variables that are set, whether they are new, and the expression."""
        solid = [token for token in content if token.kind != "space"]
        names: list[str] = []
        fresh = False
        for index, token in enumerate(solid[:4]):
            if token.text in (":=", "=") and all(
                other.kind == "variable" or other.text == "," for other in solid[:index]
            ):
                names = [other.text for other in solid[:index] if other.kind == "variable"]
                fresh = token.text == ":="
                content = content[content.index(token) + 1 :]
                break
        parser = _Expression(self, content, position)
        node = parser.pipeline()
        if parser.at < len(parser.tokens):
            raise self._syntax(position, f'unexpected "{parser.tokens[parser.at].text}" in operand')
        return names, fresh, node

    def render(self, value: Any, functions: dict[str, Any] | None = None) -> str:
        """Apply the template to a value. Raises `TemplateError`."""
        output: list[str] = []
        self._run(self._body, value, [{"$": value}], output)
        return "".join(output)

    def _run(self, body: list[Any], dot: Any, scopes: list[dict[str, Any]], output: list[str]) -> None:
        for statement in body:
            if isinstance(statement, str):
                output.append(statement)
                continue
            word = statement[0]
            if word == "print":
                _, names, fresh, node = statement
                value = self._evaluate(node, dot, scopes)
                if names:
                    self._assign(names[0], value, fresh, scopes)
                else:
                    output.append(to_text(value))
            elif word in ("if", "with"):
                _, names, fresh, node, then, otherwise = statement
                value = self._evaluate(node, dot, scopes)
                inner = [*scopes, {}]
                if names:
                    self._assign(names[0], value, fresh, inner)
                if truth(value):
                    self._run(then, value if word == "with" else dot, inner, output)
                else:
                    self._run(otherwise, dot, inner, output)
            elif word == "range":
                self._range(statement, dot, scopes, output)
            elif word == "template":
                _, name, pipe, node = statement
                if name not in self._defined:
                    raise self._failure(node, f"template {quote(name)} not defined")
                value = None if pipe is None else self._evaluate(pipe, dot, scopes)
                self._run(self._defined[name], value, [{"$": value}], output)
            else:
                raise _Leave(again=word == "continue")

    def _assign(self, name: str, value: Any, fresh: bool, scopes: list[dict[str, Any]]) -> None:
        if not fresh:
            for scope in reversed(scopes):
                if name in scope:
                    scope[name] = value
                    return
        scopes[-1][name] = value

    def _range(self, statement: Any, dot: Any, scopes: list[dict[str, Any]], output: list[str]) -> None:
        _, names, fresh, node, body, otherwise = statement
        value = self._evaluate(node, dot, scopes)
        pairs: list[tuple[Any, Any]]
        if isinstance(value, dict):
            pairs = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list):
            pairs = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(number, number) for number in range(value)]
        elif value is None or isinstance(value, Missing):
            pairs = []
        else:
            raise self._failure(node, f"range can't iterate over {to_text(value)}")
        if not pairs:
            self._run(otherwise, dot, [*scopes, {}], output)
        for key, item in pairs:
            inner = [*scopes, {}]
            if len(names) == 1:
                self._assign(names[0], item, fresh, inner)
            elif names:
                self._assign(names[0], key, fresh, inner)
                self._assign(names[1], item, fresh, inner)
            try:
                self._run(body, item, inner, output)
            except _Leave as leave:
                if not leave.again:
                    break

    def _evaluate(self, node: Node, dot: Any, scopes: list[dict[str, Any]], piped: tuple[Any, ...] = ()) -> Any:
        kind = node.kind
        if kind == "pipe":
            value: tuple[Any, ...] = piped
            for command in node.operands:
                value = (self._evaluate(command, dot, scopes, value),)
            return value[0]
        if kind == "call":
            return self._call(node, dot, scopes, piped)
        if kind == "constant":
            return node.value
        if kind == "dot":
            return dot
        if kind == "field":
            return self._fields(node, dot, (), dot, scopes)
        if kind == "variable":
            for scope in reversed(scopes):
                if node.value[0] in scope:
                    return self._chain(node, scope[node.value[0]], node.value[1:], ())
            raise self._failure(node, f"undefined variable: {node.value[0]}")
        if kind == "chain":
            return self._chain(node, self._evaluate(node.operands[0], dot, scopes), node.value, ())
        return self._call(Node("call", None, node.position, node.source, [node]), dot, scopes, piped)

    def _fields(self, node: Node, receiver: Any, arguments: tuple[Any, ...], dot: Any, scopes: Any) -> Any:
        return self._chain(node, receiver, node.value, arguments)

    def _chain(self, node: Node, value: Any, names: Sequence[str], arguments: tuple[Any, ...]) -> Any:
        before = ""
        for index, name in enumerate(names):
            last = index == len(names) - 1
            value = self._field(node, value, name, before)
            before = name
            if callable(value):
                value = value(*(arguments if last else ()))
        return value

    def _field(self, node: Node, value: Any, name: str, before: str) -> Any:
        if isinstance(value, dict):
            if name in value:
                found = value[name]
                if found is None and name in LISTS:
                    return []
                return {} if found is None and name in MAPS else found
            if before in MAPS:
                return MISSING
            if name in OPTIONAL:
                return None
            raise self._failure(node, f'map has no entry for key "{name}"')
        if isinstance(value, Fields):
            try:
                return value.field(name)
            except KeyError:
                raise self._failure(node, f"can't evaluate field {name} in type {value.type_name}") from None
        if value is None:
            raise self._failure(node, f"nil pointer evaluating interface {{}}.{name}")
        if isinstance(value, Missing):
            raise self._failure(node, f"nil data; no entry for key {quote(name)}")
        raise self._failure(node, f"can't evaluate field {name} in type {go_type(value)}")

    def _call(self, node: Node, dot: Any, scopes: list[dict[str, Any]], piped: tuple[Any, ...]) -> Any:
        first, *rest = node.operands
        if first.kind == "function":
            name = first.value
            if name in ("and", "or"):
                value: Any = None
                for operand in [*rest, *(Node("constant", item, first.position, "") for item in piped)]:
                    value = self._evaluate(operand, dot, scopes)
                    if truth(value) == (name == "or"):
                        return value
                return value
            arguments = [self._evaluate(operand, dot, scopes) for operand in rest] + list(piped)
            try:
                return self.functions[name](*arguments)
            except ValueError as error:
                raise self._failure(node if rest else first, str(error)) from None
            except (TypeError, AttributeError) as error:
                wanted = {
                    "index": "at least 1",
                    "printf": "at least 1",
                    "join": "2",
                    "split": "2",
                    "truncate": "2",
                    "pad": "3",
                }
                problem = (f"wrong number of args for {name}: want {wanted.get(name, '1')} got {len(arguments)}"
                           if "argument" in str(error)
                           else f"wrong type for value; expected string; got {go_type(arguments[0])}")  # fmt: skip
                raise self._failure(first, problem) from None
        if first.kind == "field" and (rest or piped):
            arguments = [self._evaluate(operand, dot, scopes) for operand in rest] + list(piped)
            value = dot
            before = ""
            for name in first.value:
                value, before = self._field(first, value, name, before), name
            if not callable(value):
                raise self._failure(first, f"{first.value[-1]} has arguments but cannot be invoked as function")
            return value(*arguments)
        if rest or piped:
            raise self._failure(first, f"can't give argument to non-function {first.source}")
        return self._evaluate(first, dot, scopes)


def _unquote(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    return str(json.loads('"' + re.sub(r"\\([^\"\\/bfnrtu])", _odd_escape, text[1:-1]) + '"', strict=False))


def _odd_escape(match: re.Match[str]) -> str:
    return {"a": "\\u0007", "v": "\\u000b", "'": "'"}.get(match[1], "\\\\" + match[1])


class _Expression:
    """Parser of one pipeline."""

    def __init__(self, template: Template, tokens: list[Token], position: int) -> None:
        self.template = template
        self.tokens = tokens
        self.start = position
        self.at = 0

    def _skip(self) -> None:
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "space":
            self.at += 1

    def _peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def pipeline(self) -> Node:
        commands = []
        while True:
            self._skip()
            commands.append(self.command())
            self._skip()
            token = self._peek()
            if token is None or token.text != "|":
                break
            self.at += 1
        for later in commands[1:]:
            if later.operands[0].kind in ("constant", "dot"):
                raise self.template._syntax(later.position, f"non executable command in pipeline stage {2}")
        first = commands[0]
        if len(commands) == 1:
            return first
        return Node("pipe", None, first.position, self.template.text[first.position :], commands)

    def command(self) -> Node:
        operands: list[Node] = []
        while True:
            self._skip()
            token = self._peek()
            if token is None or token.text in ("|", ")"):
                break
            operands.append(self.operand())
        if not operands:
            raise self.template._syntax(self.start, "missing value for command")
        first = operands[0]
        end = self.tokens[self.at - 1]
        source = self.template.text[first.position : end.position + len(end.text)].strip()
        return Node("call", None, first.position, source, operands)

    def operand(self) -> Node:
        token = self.tokens[self.at]
        self.at += 1
        kind, text, position = token.kind, token.text, token.position
        node: Node
        if kind == "string":
            node = Node("constant", _unquote(text), position, text)
        elif kind == "char":
            node = Node("constant", ord(_unquote('"' + text[1:-1] + '"')), position, text)
        elif kind == "number":
            body = text.replace("_", "")
            decimal = not body.lower().startswith(("0x", "+0x", "-0x"))
            node = Node("constant", float(body) if decimal and set(body) & set(".eE") else int(body, 0), position, text)
        elif kind == "field":
            node = Node("field", [text[1:]], position, text)
        elif kind == "variable":
            node = Node("variable", [text], position, text)
        elif text == ".":
            node = Node("dot", None, position, ".")
        elif text == "(":
            node = self.pipeline()
            closing = self._peek()
            if closing is None or closing.text != ")":
                raise self.template._syntax(position, "unclosed left paren")
            self.at += 1
            node = Node("pipe", None, node.position, node.source, [node])
        elif text in ("true", "false"):
            node = Node("constant", text == "true", position, text)
        elif text == "nil":
            node = Node("constant", None, position, text)
        elif kind == "word" and text not in _KEYWORDS:
            if text not in self.template.functions and text not in ("and", "or"):
                raise self.template._syntax(position, f'function "{text}" not defined')
            node = Node("function", text, position, text)
            following = self._peek()
            if following is None or following.kind != "field":
                return node
            node = Node("call", None, position, text, [node])
        else:
            raise self.template._syntax(position, f'unexpected "{text}" in operand')
        names: list[str] = []
        while (following := self._peek()) is not None and following.kind == "field":
            if not names:
                node.position = following.position if node.kind in ("field", "variable") else node.position
            names.append(following.text[1:])
            self.at += 1
        if not names:
            return node
        tail = "".join(f".{name}" for name in names)
        if node.kind in ("field", "variable"):
            return Node(node.kind, node.value + names, node.position, node.source + tail)
        if node.kind in ("constant", "dot"):
            raise self.template._syntax(position, f"unexpected <{tail}> in operand")
        return Node("chain", names, node.position, node.source + tail, [node])
