#!/usr/bin/env python3
"""Writes tests/fixtures/chat/expressions.json: expressions of Jinja and what Hugging Face's renderer gives for each.

    python3 -m venv /tmp/jinja && /tmp/jinja/bin/pip install jinja2
    /tmp/jinja/bin/python scripts/template-expressions.py

The environment is that of transformers (utils/chat_template_utils.py, `_compile_jinja_template`): immutable sandbox, trimmed
blocks, loop controls, its `tojson`. An expression that fails there is kept with `null`: it has to fail here, too.
"""

import json
import pathlib

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "s": "Hello, World",
    "t": "  two words\t",
    "u": "Größe ß Ǆ ½ ² ٣",
    "m": "one\ntwo\r\n\nfour",
    "html": "<p class=\"x\">A &amp; B</p> <!-- c --> it's",
    "long": "The quick brown fox jumps over the lazy dog, extraordinarily-quick indeed.",
    "n": 7,
    "f": 2.5,
    "big": 123456789012,
    "l": [3, 1, 2, 1],
    "words": ["pear", "Apple", "fig"],
    "rows": [{"name": "b", "n": 2, "g": "x"}, {"name": "a", "n": 1, "g": "y"}, {"name": "c", "n": 3, "g": "x"}],
    "d": {"b": 1, "a": [1, "x", None], "items": "key"},
    "none": None,
    "yes": True,
}

EXPRESSIONS = r"""
s.upper() | s.lower() | s.swapcase() | s.title() | s.capitalize() | s.casefold() | u.casefold() | u.upper() | u.lower()
'they\'re bill\'s'.title() | 'x1y'.title() | s.center(20) | s.center(21, '*') | 'ab'.center(5, '*') | 'abc'.center(6, '*')
s.ljust(15) ~ '|' | s.rjust(15, '.') | '42'.zfill(5) | '-42'.zfill(5) | '+x'.zfill(4) | 'a\tb'.expandtabs() | 'a\tb\n\tc'.expandtabs(4)
t.strip() | t.lstrip() | t.rstrip() | 'xxaxx'.strip('x') | 'abcba'.lstrip('ab') | 'abcba'.rstrip('ab') | t.strip(none)
s.removeprefix('Hello') | s.removeprefix('x') | s.removesuffix('World') | s.removesuffix('')
s.split(',') | s.split() | t.split() | 'a b c'.split(' ', 1) | 'a,b,c'.split(sep=',', maxsplit=1) | 'a  b '.split(' ') | ' a b  c '.split(none, 1)
'a b c'.rsplit(' ', 1) | ' a b  c '.rsplit(none, 1) | 'a,b,c'.rsplit(',') | 'a,b,c'.rsplit(maxsplit=1, sep=',') | s.split('')
m.splitlines() | m.splitlines(true) | m.splitlines(keepends=true) | ''.splitlines() | 'a\x0bb\x85c\u2028d'.splitlines()
s.partition(',') | s.partition('x') | s.rpartition('o') | s.rpartition('x')
s.find('o') | s.find('o', 5) | s.find('o', 5, 8) | s.find('x') | s.rfind('o') | s.find('') | s.find('', 99) | s.find('l', -3) | u.find('ß')
s.index('o') | s.index('x') | s.rindex('o') | s.count('l') | s.count('l', 4) | s.count('') | s.count('l', 0, 3)
s.startswith('Hell') | s.startswith(('x', 'He')) | s.startswith('World', 7) | s.endswith('World') | s.endswith(('x', 'ld')) | s.endswith('Hello', 0, 5) | s.startswith('')
s.replace('l', 'L') | s.replace('l', 'L', 2) | s.replace('', '-') | s.replace('l', '', 0) | s.replace('l', 'L', -1)
'a'.isalpha() | ''.isalpha() | 'a1'.isalnum() | '12'.isdigit() | '²'.isdigit() | '½'.isdigit() | '½'.isnumeric() | '²'.isdecimal() | '٣'.isdecimal() | '٣'.isdigit()
'Ab Cd'.istitle() | 'AB'.istitle() | 'a b'.islower() | '12'.islower() | 'AB1'.isupper() | ' \t'.isspace() | ''.isspace() | 'a_1'.isidentifier() | '1a'.isidentifier() | 'é'.isascii() | 'ab'.isascii()
', '.join(words) | ''.join([]) | '-'.join('abc') | '-'.join([1, 2]) | '-'.join(d)
'{} and {}'.format(1, 'x') | '{1}{0}'.format('a', 'b') | '{x:>5}|{y:.2f}'.format(x='a', y=2.0) | '{:05d}'.format(42) | '{{}}'.format() | '{0[0]}'.format([7]) | '{!r}'.format('a')
'%s-%d' % ('a', 3) | '%s' % none | '%s' % 'x' | '%5.1f|' % f | '%-5s|' % 'a' | '%05d' % 42 | '%x %X %o' % (255, 255, 8) | '%%' % () | '%(a)s' % {'a': 1} | '%r' % 'x' | '%c' % 'z' | '%e' % 12345.678 | '%g' % 0.00001 | '%g' % 1234567 | '%g' % 100.0 | '%s %s' % 'x' | '%d' % 'x' | '%s' % [1, 2] | '%+d' % 3 | '%.3s' % 'abcdef' | '%d' % 3.9 | '%i' % true | '%*d' % (5, 42) | '%s' % ('x', 'y')
l.index(1) | l.index(9) | l.count(1) | l.copy() | (1, 2).index(2) | (1, 1).count(1) | l.append(4) | l.index(1, 2)
d.keys() | list | d.keys() | list | d.values() | list | d.items() | list | d.get('b') | d.get('x') | d.get('x', 5) | d.copy() | d.items() | length
s[0] | s[-1] | s[1:4] | s[::-1] | s[-3:] | s[:-3] | s[::2] | s[8:2:-2] | s[5:2] | l[::-1] | l[1:] | l[:-1] | l[-1] | l[10:] | (1, 2, 3)[::-1] | (1, 2, 3)[1:] | l[3:0:-1] | s[99:] | l[0:4:3]
1 + 2 | 1 + 2.5 | true + 1 | 'a' + 'b' | [1] + [2] | (1,) + (2,) | 'a' + 1 | [1] + (2,) | none + 1 | 7 // 2 | -7 // 2 | 7 % 3 | -7 % 3 | 7 % -3 | 7.5 % 2 | -7.5 % 2 | 7 / 2 | 4 / 2 | 2 ** 10 | 2 ** -1 | 2 ** 0.5 | 1 / 0 | 1 % 0
'ab' * 3 | 3 * 'ab' | 'ab' * -1 | [1] * 3 | (1,) * 2 | 'a' * true | 'a' * 2.0 | 1 ~ 'a' ~ none | 1.0 ~ '' | [1, 'a'] ~ '' | true ~ '' | {} ~ ()
[1, 2.0, 'a', none, true, {'k': (1,)}] | () | (1,) | {'a': 'it\'s', 1: "say \"x\""} | ['\n\t\\', 'é', '\u200b', '\x00', '\x7f'] | ["both ' and \""] | 1e16 | 1e-5 | 100000.0 | 0.1 | 1.5e300 | big * big | -0.0 | 12345678901234567890
3 in l | 'a' in 'abc' | 'b' in d | 9 not in l | 1 < 2 < 3 | 1 < 2 > 3 | 'a' < 'b' | 1 == 1.0 | true == 1 | [1] == [1] | (1,) == [1] | 'a' == 1 | none == none | {'a': 1} == {'a': 1} | [1, 2] < [1, 3] | 1 < 'a' | 1 in 'abc'
not none | none or 'x' | '' or 0 or 'z' | 1 and 2 | 'yes' if n > 5 else 'no' | ('x' if false) | -n | - -n | +n
words | sort | join(',') ;; words | sort(case_sensitive=true) | join(',') ;; words | sort(reverse=true) | join(',') ;; rows | sort(attribute='n') | map(attribute='name') | join ;; l | sort ;; l | unique | list ;; words | map('upper') | list ;; words | map('length') | list ;; l | sum ;; l | max ;; l | min ;; rows | sum(attribute='n') ;; rows | map(attribute='q', default='-') | list
rows | selectattr('g', 'equalto', 'x') | map(attribute='name') | list ;; rows | rejectattr('g', 'eq', 'x') | list | length ;; l | select('odd') | list ;; l | reject('odd') | list ;; l | select | list ;; rows | groupby('g') | map('first') | list ;; rows | groupby('g') | map(attribute='list') | map('length') | list ;; l | first ;; l | last ;; [] | first ;; s | first ;; s | last
l | batch(3) | list ;; l | batch(3, 'x') | list ;; l | slice(3) | list ;; l | slice(3, 'x') | list ;; [1,2,3,4,5,6,7] | slice(3, '-') | list ;; l | reverse | list ;; s | reverse ;; l | join('|') ;; rows | join(',', attribute='name') ;; [1, none, 2.0, true] | join('-') ;; d | dictsort ;; d | dictsort(reverse=true) | list | length ;; d | items | list ;; d | list ;; s | list | length ;; d | length ;; s | length ;; none | length ;; n | length
s | upper ;; s | lower ;; 'hello world-x y'  | title ;; s | capitalize ;; t | trim ;; 'xxaxx' | trim('x') ;; s | replace('l', 'L') ;; s | replace('l', 'L', 1) ;; n | replace('7', 'x') ;; s | center(20) ;; s | wordcount ;; 'a-b c_d e' | wordcount ;; long | truncate(20) ;; long | truncate(20, true) ;; long | truncate(20, end='…') ;; long | truncate(20, false, '') ;; 'short' | truncate(3) ;; 'a bit more' | truncate(5, leeway=0) ;; long | wordwrap(20) ;; long | wordwrap(10) ;; long | wordwrap(10, false) ;; long | wordwrap(12, wrapstring=' / ')
m | indent ;; m | indent(2) ;; m | indent(2, true) ;; m | indent(2, first=true, blank=true) ;; m | indent('> ') ;; m | indent(width=1, blank=true) ;; '' | indent ;; 'a\n' | indent ;; html | striptags ;; html | escape ;; html | e ;; html | forceescape ;; {'id': 'x', 'class': none, 'data-a': '"q"'} | xmlattr ;; {'id': 'x'} | xmlattr(false) ;; {} | xmlattr ;; 'a b&c/ü' | urlencode ;; {'a': 'b c'} | urlencode
1 | filesizeformat ;; 999 | filesizeformat ;; 13000 | filesizeformat ;; 4100000 | filesizeformat ;; 4100000 | filesizeformat(true) ;; 1048576 | filesizeformat(true) ;; '3.9' | int ;; 'x' | int ;; 'x' | int(7) ;; '0x1f' | int(0, 16) ;; 3.9 | int ;; '3.5' | float ;; 'x' | float ;; 'x' | float(1.5) ;; 3 | float ;; -3 | abs ;; 2.567 | round(2) ;; 2.5 | round ;; 2.1 | round(0, 'ceil') ;; 2.9 | round(method='floor') ;; 42 | string ~ 'x' ;; none | string ;; [1] | string
undefined_name | default('x') ;; '' | default('x') ;; '' | default('x', true) ;; none | d('y') ;; undefined_name ;; undefined_name.a ;; undefined_name is defined ;; none is none ;; n is number ;; s is string ;; l is sequence ;; d is mapping ;; s is iterable ;; n is iterable ;; n is odd ;; n is even ;; n is divisibleby 7 ;; n is divisibleby(2) ;; f is float ;; n is integer ;; yes is boolean ;; true is true ;; 1 is true ;; s is lower ;; 'a' is lower ;; 'A' is upper ;; range is callable ;; s is callable ;; cycler is callable ;; n is eq 7 ;; n is gt 3 ;; n is in l ;; 3 is in l ;; n is sameas n ;; s is not none
'%s %05.1f' | format('a', 2.25) ;; '%(x)s' | format(x=1) ;; '%s' | format(none) ;; '%d%%' | format(50) ;; d | tojson ;; d | tojson(indent=2) ;; 'ü<é"\n' | tojson ;; [1.0, none, true] | tojson ;; (1, 2) | tojson ;; s | pprint ;; l | pprint ;; s | attr('upper') is callable ;; d | attr('b') is defined ;; dict(a=1, b='x') ;; dict([('a', 1), ('b', 2)]) ;; dict({'a': 1}, b=2) ;; range(5) | list ;; range(2, 10, 3) | list ;; range(5, 0, -2) | list ;; namespace(a=1).a ;; joiner('-')() ;; cycler(1, 2).next()
"""

STATEMENTS = [
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% set j = joiner('; ') %}{% for w in words %}{{ j() }}{{ w }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex0 }}{{ loop.length }} {% endfor %}",
    "{% for x in l %}{{ loop.cycle('o', 'e') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(x) }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }};{% endfor %}{% for x in [] %}a{% else %}empty{% endfor %}",
    "{% for r in rows if r.n > 1 %}{{ r.name }}{{ loop.length }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in l %}{% if x == 2 %}{% break %}{% endif %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(b=5, a=4)|upper }}",
    "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}in{% endcall %}",
    "{% macro f(x) %}[{{ caller(x) }}]{% endmacro %}{% call(y) f(3) %}{{ y + 1 }}{% endcall %}",
    "{% set ns = namespace(x=0, y=[]) %}{% for i in l %}{% set ns.x = ns.x + i %}{% set ns.y = ns.y + [i] %}{% endfor %}{{ ns.x }}{{ ns.y }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x %}cap{{ n }}{% endset %}{{ x|upper }}",
    "{% set x | upper %}cap{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{% if n > 9 %}a{% elif n > 5 %}b{% else %}c{% endif %}{{- '  x  ' -}} y",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "{# comment #}\n{%- raw %}{{ x }}{% endraw -%}  z",
    "{{ ['a', 'b'] | map('upper') | join }}{{ rows | map(attribute='name') | map('upper') | list }}",
    "{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}",
    "{% set d2 = dict(d, **{'z': 1}) %}{{ d2 }}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}",
    "{% generation %}x{% endgeneration %}",
    "{% do l %}",
    "{{ raise_exception('no') }}",
    "{{ d['items'] }}{{ d.items is callable }}{{ d.b }}{{ d['b'] }}{{ d.nope is defined }}",
    "{{ s.upper is callable }}{{ s['x'] is defined }}",
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def main():
    env = environment()
    sources = []
    for line in EXPRESSIONS.strip().splitlines():
        separator = " ;; " if " ;; " in line else " | "
        sources += ["{{ " + part.strip() + " }}" for part in line.split(separator)]
    sources = list(dict.fromkeys(sources)) + STATEMENTS
    cases = []
    for source in sources:
        try:
            expected = env.from_string(source).render(**VARIABLES)
        except Exception:  # What it says is Python's business; that it fails is the case.
            expected = None
        cases.append([source, expected])
    out = pathlib.Path(__file__).parent.parent / "tests/fixtures/chat/expressions.json"
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
    variables = json.dumps(VARIABLES, ensure_ascii=True)
    out.write_text('{"variables": ' + variables + ',\n"cases": [\n' + lines + "\n]}\n")
    print(f"{out}: {len(cases)} cases, {sum(c[1] is None for c in cases)} of which fail")


if __name__ == "__main__":
    main()
