# ruff: noqa: E501 (programs and stacks in strings)
"""URL and URLSearchParams against cases of the URL Standard."""

from typing import Any

import pytest

from tests.fix_quickjs_child import Child

# (input, base, href), href None where parsing must fail.
CORPUS: list[tuple[str, str | None, str | None]] = [
    ("http://example.com", None, "http://example.com/"),
    ("HTTP://EXAMPLE.com:80/../a/./b/%2e%2E/c?q#f", None, "http://example.com/a/c?q#f"),
    ("https://user:pass@h:8080/p?x=1&y=2#z", None, "https://user:pass@h:8080/p?x=1&y=2#z"),
    ("https://user:@h/", None, "https://user@h/"),
    ("https://:p@h/", None, "https://:p@h/"),
    ("https://a@b@c/", None, "https://a%40b@c/"),
    ("https://u:p:q@h/", None, "https://u:p%3Aq@h/"),
    ("  http://a/\t\nb  ", None, "http://a/b"),
    ("http:\\\\a\\b", None, "http://a/b"),
    ("http:///a", None, "http://a/"),
    ("http:/a/b", None, "http://a/b"),
    ("http:a", None, "http://a/"),
    ("http:a", "http://h/x/y", "http://h/x/a"),
    ("https:a", "http://h/x/y", "https://a/"),
    ("http:/a", "http://h/x/y", "http://h/a"),
    ("http://", None, None),
    ("http://:80", None, None),
    ("http://a:99999", None, None),
    ("http://a:b", None, None),
    ("http://a:/", None, "http://a/"),
    ("http://a:00080/", None, "http://a/"),
    ("https://a:80/", None, "https://a:80/"),
    ("ws://a:80/", None, "ws://a/"),
    ("wss://a:443/", None, "wss://a/"),
    ("ftp://a:21/", None, "ftp://a/"),
    ("http://a b/", None, None),
    ("http://a%20b/", None, None),
    ("http://a%41/", None, "http://aa/"),
    ("http://a<b", None, None),
    ("http://a^b", None, None),
    ("http://%zz/", None, None),
    ("http://a\x7fb", None, None),
    ("http://\u00fc.de", None, "http://xn--tda.de/"),
    ("http://b\u00fccher.example/\u00fc?\u00fc#\u00fc", None, "http://xn--bcher-kva.example/%C3%BC?%C3%BC#%C3%BC"),
    ("http://\u4f60\u597d\u4f60\u597d", None, "http://xn--6qqa088eba/"),
    ("http://\uff27\uff4f.com", None, "http://go.com/"),
    ("http://fa\u00df.example/", None, "http://xn--fa-hia.example/"),
    ("http://ex\u00adample.com/", None, "http://example.com/"),
    ("http://a\u3002b", None, "http://a.b/"),
    ("http://1.2.3.4/", None, "http://1.2.3.4/"),
    ("http://0x7f.1/", None, "http://127.0.0.1/"),
    ("http://0300.168.0.1/", None, "http://192.168.0.1/"),
    ("http://256/", None, "http://0.0.1.0/"),
    ("http://4294967295/", None, "http://255.255.255.255/"),
    ("http://4294967296/", None, None),
    ("http://1.2.3.4./", None, "http://1.2.3.4/"),
    ("http://1.2.3.4.5/", None, None),
    ("http://1.2.3.256/", None, None),
    ("http://1.2.3.08/", None, None),
    ("http://a.1/", None, None),
    ("http://1..2/", None, None),
    ("http://a.0x/", None, None),
    ("http://[::1]/", None, "http://[::1]/"),
    ("http://[1:2:3:4:5:6:7:8]:81/", None, "http://[1:2:3:4:5:6:7:8]:81/"),
    ("http://[2001:DB8:0:0:1:0:0:1]/", None, "http://[2001:db8::1:0:0:1]/"),
    ("http://[1:0:0:2:0:0:0:3]/", None, "http://[1:0:0:2::3]/"),
    ("http://[1:0:2:3:4:5:6:7]/", None, "http://[1:0:2:3:4:5:6:7]/"),
    ("http://[::127.0.0.1]/", None, "http://[::7f00:1]/"),
    ("http://[::ffff:1.2.3.4]/", None, "http://[::ffff:102:304]/"),
    ("http://[::]/", None, "http://[::]/"),
    ("http://[1::]/", None, "http://[1::]/"),
    ("http://[:1]/", None, None),
    ("http://[1:2]/", None, None),
    ("http://[1::2::3]/", None, None),
    ("http://[1:2:3:4:5:6:7:8:9]/", None, None),
    ("http://[::1.2.3]/", None, None),
    ("http://[::1.2.3.04]/", None, None),
    ("http://[::12345]/", None, None),
    ("http://[::1", None, None),
    ("http://::1]/", None, None),
    ("http://[::1%25eth0]/", None, None),
    ("http://a/ b?c d#e f", None, "http://a/%20b?c%20d#e%20f"),
    ("http://a/\"<>`{}^|'", None, "http://a/%22%3C%3E%60%7B%7D%5E|'"),
    ("http://a/?\"<>'`{}", None, "http://a/?%22%3C%3E%27`{}"),
    ("x://a/?'", None, "x://a/?'"),
    ('http://a/#"<>`{}', None, "http://a/#%22%3C%3E%60{}"),
    ("http://a/%zz%4", None, "http://a/%zz%4"),
    ("http://a/\U0001f600", None, "http://a/%F0%9F%98%80"),
    ("http://a?", None, "http://a/?"),
    ("http://a#", None, "http://a/#"),
    ("http://a/b/../..", None, "http://a/"),
    ("http://a/b/.", None, "http://a/b/"),
    ("http://a/b/..", None, "http://a/"),
    ("http://a//b//..//c", None, "http://a//b//c"),
    ("http://a/.%2E/b", None, "http://a/b"),
    ("g", "http://h/a/b/c?q#f", "http://h/a/b/g"),
    ("./g", "http://h/a/b/c", "http://h/a/b/g"),
    ("../g", "http://h/a/b/c", "http://h/a/g"),
    ("../../../g", "http://h/a/b/c", "http://h/g"),
    ("/g", "http://h/a/b/c", "http://h/g"),
    ("//g", "http://h/a/b/c", "http://g/"),
    ("\\g", "http://h/a/b", "http://h/g"),
    ("\\\\g", "http://h/a/b", "http://g/"),
    ("?y", "http://h/a/b?q#f", "http://h/a/b?y"),
    ("#s", "http://h/a/b?q#f", "http://h/a/b?q#s"),
    ("", "http://h/a/b?q#f", "http://h/a/b?q"),
    ("", None, None),
    ("nope", None, None),
    ("//x", None, None),
    ("1http://a", None, None),
    ("a:b", None, "a:b"),
    ("mailto:a@b.c?subject=x y", None, "mailto:a@b.c?subject=x%20y"),
    ("data:text/plain,hi there#x", None, "data:text/plain,hi there#x"),
    ("javascript:alert(1)", None, "javascript:alert(1)"),
    ("x", "mailto:a", None),
    ("#x", "mailto:a", "mailto:a#x"),
    ("foo://Host/A/../b", None, "foo://Host/b"),
    ("foo://h", None, "foo://h"),
    ("foo://h?q", None, "foo://h?q"),
    ("foo:///a", None, "foo:///a"),
    ("foo://h:0/", None, "foo://h:0/"),
    ("foo://a b/", None, None),
    ("foo://\u00fc/", None, "foo://%C3%BC/"),
    ("foo:/a/../..//b", None, "foo:/.//b"),
    ("foo:/a", None, "foo:/a"),
    ("../x", "foo://h/a/b", "foo://h/x"),
    ("\\x", "foo://h/a/b", "foo://h/a/\\x"),
    ("file:///a/b", None, "file:///a/b"),
    ("file://localhost/a", None, "file:///a"),
    ("file://host/a", None, "file://host/a"),
    ("file:c:\\x\\..\\y", None, "file:///c:/y"),
    ("file:///C|/a/../..", None, "file:///C:/"),
    ("file:a", None, "file:///a"),
    ("b", "file:///a/c", "file:///a/b"),
    ("/b", "file:///C:/a", "file:///C:/b"),
    ("//h/b", "file:///a", "file://h/b"),
    ("blob:https://a.b/c", None, "blob:https://a.b/c"),
]


@pytest.fixture(scope="module")
def evaluator() -> Any:
    child = Child()
    try:
        assert child.bind("export default ({code, input}) => new Function('input', code)(input)").outcome == "ok"
        yield lambda code, value=None: child.invoke({"code": code, "input": value}).value
    finally:
        child.close()


def test_the_corpus(evaluator: Any) -> None:
    code = """return input.map(([text, base]) => {
      try { return new URL(text, base ?? undefined).href } catch (e) { return e instanceof TypeError ? null : String(e) } })"""
    got = evaluator(code, [[text, base] for text, base, _ in CORPUS])
    assert [(*case[:2], href) for case, href in zip(CORPUS, got, strict=True)] == CORPUS


def test_parsing_again_changes_nothing(evaluator: Any) -> None:
    hrefs = [href for _, _, href in CORPUS if href]
    assert evaluator("return input.map((href) => new URL(href).href)", hrefs) == hrefs


def test_can_parse_and_parse_agree_with_the_constructor(evaluator: Any) -> None:
    code = "return input.map(([t, b]) => [URL.canParse(t, b ?? undefined), URL.parse(t, b ?? undefined)?.href ?? null])"
    got = evaluator(code, [[text, base] for text, base, _ in CORPUS])
    assert got == [[href is not None, href] for _, _, href in CORPUS]


def test_parts(evaluator: Any) -> None:
    code = """const u = new URL(input); return [u.protocol, u.username, u.password, u.host, u.hostname, u.port, u.pathname,
              u.search, u.hash, u.origin, String(u), JSON.stringify(u)]"""
    href = "https://u:p@h:81/a/b?c=d#e"
    parts = ["https:", "u", "p", "h:81", "h", "81", "/a/b", "?c=d", "#e", "https://h:81", href, f'"{href}"']
    assert evaluator(code, href) == parts
    assert evaluator(
        "return input.map((t) => new URL(t).origin)", ["file:///a", "a:b", "blob:https://a.b/c", "ftp://a"]
    ) == [
        "null",
        "null",
        "https://a.b",
        "ftp://a",
    ]


@pytest.mark.parametrize(
    ("href", "part", "value", "expected"),
    [
        ("http://a/b", "protocol", "https", "https://a/b"),
        ("http://a:443/b", "protocol", "https:", "https://a/b"),
        ("http://a/b", "protocol", "foo", "http://a/b"),
        ("foo://a/b", "protocol", "http", "foo://a/b"),
        ("http://a/", "username", "x y@", "http://x%20y%40@a/"),
        ("http://a/", "password", "p:", "http://:p%3A@a/"),
        ("file:///a", "username", "x", "file:///a"),
        ("http://a:1/", "host", "b:2", "http://b:2/"),
        ("http://a:1/", "host", "b", "http://b:1/"),
        ("http://a:1/", "host", "", "http://a:1/"),
        ("http://a:1/", "hostname", "B", "http://b:1/"),
        ("http://a:1/", "hostname", "b:2", "http://a:1/"),
        ("http://a/", "hostname", "[::1]", "http://[::1]/"),
        ("http://a/", "hostname", "x y", "http://a/"),
        ("http://a/", "hostname", "b/c", "http://b/"),
        ("mailto:a", "host", "b", "mailto:a"),
        ("http://a/", "port", "8080", "http://a:8080/"),
        ("http://a:1/", "port", "80", "http://a/"),
        ("http://a:1/", "port", "", "http://a/"),
        ("http://a:1/", "port", "90x", "http://a:90/"),
        ("http://a:1/", "port", "70000", "http://a:1/"),
        ("http://a/b?q", "pathname", "c d/../e?f#g", "http://a/e%3Ff%23g?q"),
        ("http://a/b", "pathname", "", "http://a/"),
        ("mailto:a", "pathname", "b", "mailto:a"),
        ("http://a/", "search", "x='y'", "http://a/?x=%27y%27"),
        ("http://a/?x", "search", "", "http://a/"),
        ("http://a/", "search", "?#", "http://a/?%23"),
        ("http://a/", "hash", "#x `", "http://a/#x%20%60"),
        ("http://a/#x", "hash", "", "http://a/"),
        ("http://a/", "href", "http://b/c", "http://b/c"),
    ],
)
def test_setters(evaluator: Any, href: str, part: str, value: str, expected: str) -> None:
    code = "const u = new URL(input[0]); u[input[1]] = input[2]; return u.href"
    assert evaluator(code, [href, part, value]) == expected


def test_search_params_follow_their_url_and_back(evaluator: Any) -> None:
    code = """const u = new URL("http://a/?x=1&x=2"); const p = u.searchParams; const seen = [p.getAll("x")];
      p.append("y", "é &+"); seen.push(u.search); u.search = "?z=9"; seen.push(p.get("z"), p.has("x"));
      p.delete("z"); seen.push(u.href, p === u.searchParams); u.href = "http://b/?k=v"; seen.push(p.toString()); return seen"""
    assert evaluator(code) == [["1", "2"], "?x=1&x=2&y=%C3%A9+%26%2B", "9", False, "http://a/", True, "k=v"]


@pytest.mark.parametrize(
    ("init", "text"),
    [
        ("'?a=1&b=2&a=3'", "a=1&b=2&a=3"),
        ("'a&b=&=c&&d=e=f'", "a=&b=&=c&d=e%3Df"),
        ("'a=%zz%41+b'", "a=%25zzA+b"),
        ("'%FF=%C3%A9'", "%EF%BF%BD=%C3%A9"),
        ("{a: 1, b: [2, 3]}", "a=1&b=2%2C3"),
        ("[['a', 'b'], ['c', 'd']]", "a=b&c=d"),
        ("new Map([['a', 'b']])", "a=b"),
        ("new URLSearchParams('x=y')", "x=y"),
        ('{k: "*-._~ !\'()"}', "k=*-._%7E+%21%27%28%29"),
    ],
)
def test_search_params_are_made_of(evaluator: Any, init: str, text: str) -> None:
    assert evaluator(f"return new URLSearchParams({init}).toString()") == text


def test_search_params_methods(evaluator: Any) -> None:
    code = """const p = new URLSearchParams("b=2&a=1&b=3&c"); const seen = [p.size, [...p], [...p.keys()], [...p.values()]];
      p.set("b", "9"); seen.push(p.toString()); p.append("a", "0"); p.sort(); seen.push(p.toString());
      p.delete("a", "1"); seen.push(p.has("a", "1"), p.has("a", "0"), p.get("none"));
      const each = []; p.forEach((value, name) => each.push(name + value)); seen.push(each);
      try { new URLSearchParams([["a"]]) } catch (e) { seen.push(e.name) } return seen"""
    assert evaluator(code) == [
        4,
        [["b", "2"], ["a", "1"], ["b", "3"], ["c", ""]],
        ["b", "a", "b", "c"],
        ["2", "1", "3", ""],
        "b=9&a=1&c=",
        "a=1&a=0&b=9&c=",
        False,
        True,
        None,
        ["a0", "b9", "c"],
        "TypeError",
    ]
