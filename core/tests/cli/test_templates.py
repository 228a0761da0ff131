"""The template language, its functions and its errors are Go's."""

from __future__ import annotations

import pytest

from engine.cli.template_values import Fields
from engine.cli.templates import Template, TemplateError

VALUE = {
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "ExitCode": 0, "Health": None},
    "Config": {"Env": ["A=1", "B=2"], "Labels": {"x.y": "z", "k": "v"}, "Cmd": None, "ExposedPorts": {"80/tcp": {}}},
    "NetworkSettings": {"Networks": {"b": {"IPAddress": "10.0.0.2"}, "a": {"IPAddress": "10.0.0.1"}}},
    "Mounts": [{"Type": "bind", "Source": "/s"}, {"Type": "volume", "Source": "/t"}],
    "Size": 3.5,
    "Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
    "HostConfig": {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}}", "/web"),
        ("a{{ .State.Running }}b", "atrueb"),
        ("{{.Config.Labels}}", "map[k:v x.y:z]"),
        ("{{.Config.Env}}", "[A=1 B=2]"),
        ("{{.Ports}} {{.Config.ExposedPorts}}", "map[80/tcp:[{ 8080}]] map[80/tcp:{}]"),
        ("{{.HostConfig.RestartPolicy}}", "{no 0}"),
        ("{{.Config.Cmd}} {{.State.Health}}", "[] <nil>"),
        ('{{index .Config.Labels "x.y"}}', "z"),
        ("{{.Config.Labels.nope}}", "<no value>"),
        ('{{index .Config.Labels "nope"}}|', "|"),
        ("{{index .Config.Env 1}}", "B=2"),
        ('{{(index .Mounts 0).Source}}', "/s"),
        ("{{json .Config.Env}}", '["A=1","B=2"]'),
        ("{{range .Mounts}}{{.Type}};{{end}}", "bind;volume;"),
        ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Type}} {{end}}", "0=bind 1=volume "),
        ("{{range $k, $v := .NetworkSettings.Networks}}{{$k}}:{{$v.IPAddress}} {{end}}", "a:10.0.0.1 b:10.0.0.2 "),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Health}}h{{else if eq .State.ExitCode 0}}zero{{else}}no{{end}}", "zero"),
        ("{{with .State}}{{.Status}} {{$.Name}}{{end}}", "running /web"),
        ('{{.Name | printf "%s-%d" | upper}}', "/WEB-%!D(MISSING)"),
        ('{{printf "%q %5s|%-5s|%05d %v" "a" "b" "c" 42 .State.Running}}', '"a"     b|c    |00042 true'),
        ('{{split "a:b" ":"}} {{join .Config.Env ","}}', "[a b] A=1,B=2"),
        ('{{title "abc def"}} {{lower "AB"}} {{upper "ab"}}', "Abc Def ab AB"),
        ('{{pad "x" 1 2}}| {{truncate "abcdef" 3}}', " x  | abc"),
        ('{{len .Config.Env}} {{len "abc"}}', "2 3"),
        ('{{and 1 0}} {{or 0 "x"}} {{not true}}', "0 x false"),
        ('{{eq 1 2 1}} {{ne "a" "b"}} {{lt 1 2}} {{ge 2 2}} {{gt 1 2}} {{le 3 2}}', "true true true true false false"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("a {{- 1 -}} b", "a1b"),
        ("a{{/* note */}}b {{- /* x */ -}} c", "abc"),
        ('{{println "a" 1}}', "a 1\n"),
        ("{{.Size}}", "3.5"),
        ("{{range .Config.Env}}{{if eq . \"B=2\"}}{{break}}{{end}}{{.}}{{end}}", "A=1"),
        ('{{define "t"}}<{{.}}>{{end}}{{template "t" .Name}}', "</web>"),
        ('{{"quoted \\"x\\"\\n"}}{{`raw\\n`}}', 'quoted "x"\nraw\\n'),
    ],
)  # fmt: skip
def test_a_template_renders(template: str, text: str) -> None:
    assert Template(template).render(VALUE) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name", "template: :1: unclosed action"),
        ("{{if .Name}}x", "template: :1: unexpected EOF"),
        ("{{nope .}}", 'template: :1: function "nope" not defined'),
        ("{{}}", "template: :1: missing value for command"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("\n{{(.Name}}", "template: :2: unclosed left paren"),
        ("{{/* x }}", "template: :1: unclosed comment"),
    ],
)
def test_bad_syntax_is_refused_in_gos_words(template: str, text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Nope}}", 'template: :1:2: executing "" at <.Nope>: map has no entry for key "Nope"'),
        ("{{.State.Nope}}", 'template: :1:8: executing "" at <.State.Nope>: map has no entry for key "Nope"'),
        ("x\n {{.Name.Foo}}", 'template: :2:8: executing "" at <.Name.Foo>: can\'t evaluate field Foo in type string'),
        ("{{index .Config.Env 5}}",
         'template: :1:2: executing "" at <index .Config.Env 5>: error calling index: '
         "reflect: slice index out of range: 5"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit_says_where(template: str, text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template).render(VALUE)
    assert str(caught.value) == text


class Row(Fields):
    type_name = "*formatter.ContainerContext"

    def names(self) -> list[str]:
        return ["ID", "Names"]

    def field(self, name: str) -> object:
        if name == "Label":
            return lambda key: f"label {key}"
        return {"ID": "<x>", "Names": "n"}[name]


def test_rows_have_fields_methods_and_escaped_json() -> None:
    assert (
        Template('{{.ID}} {{.Label "a"}} {{json .}}').render(Row())
        == '<x> label a {"ID":"\\u003cx\\u003e","Names":"n"}'
    )


def test_a_row_names_its_go_type_in_errors() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Nope in type \*formatter\.ContainerContext"):
        Template("{{.Nope}}").render(Row())
