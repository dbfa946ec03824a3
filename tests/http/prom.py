"""A parser of the Prometheus text format 0.0.4 that takes nothing else, after the format's published
grammar: every family has one HELP and one TYPE line before its samples, samples of a family stand
together, no sample comes twice, histograms are cumulative and complete."""
import math
import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
TYPES = {"counter", "gauge", "histogram", "summary"}
ESCAPES = {"\\": "\\", '"': '"', "n": "\n"}


def labels_of(text, line):
    """'{a="b",c="d"} 1' -> ({"a": "b", "c": "d"}, " 1")"""
    out = {}
    at = 1
    while text[at] != "}":
        name = LABEL.match(text, at)
        assert name and name.group() not in out, line
        at = name.end()
        assert text[at:at + 2] == '="', line
        at += 2
        value = ""
        while text[at] != '"':
            if text[at] == "\\":
                at += 1
                assert text[at] in ESCAPES, line
                value += ESCAPES[text[at]]
            else:
                value += text[at]
            at += 1
        out[name.group()] = value
        at += 1
        if text[at] == ",":
            at += 1
            assert text[at] != "}", line
        else:
            assert text[at] == "}", line
    return out, text[at + 1:]


def number_of(text, line):
    assert re.fullmatch(r"[-+]?(\d+(\.\d*)?([eE][-+]?\d+)?|Inf)|NaN", text), line
    return float(text)


class Family:
    def __init__(self, name, text):
        self.name, self.help, self.type, self.samples = name, text, None, []

    def add(self, sample, labels, value, line):
        suffix = sample[len(self.name):]
        allowed = {"histogram": {"_bucket", "_sum", "_count"}, "summary": {"_sum", "_count"}}
        assert suffix in allowed.get(self.type, {""}), line
        assert ("le" in labels) == (suffix == "_bucket"), line
        assert all((s, l) != (sample, labels) for s, l, _ in self.samples), "twice: " + line
        if self.type != "gauge":
            assert value >= 0, line
        self.samples.append((sample, labels, value))

    def check(self):
        assert self.type in TYPES, self.name
        if self.type == "counter":
            assert self.name.endswith("_total"), self.name
        if self.type != "histogram":
            return
        series = {}
        for sample, labels, value in self.samples:
            key = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
            series.setdefault(key, {}).setdefault(sample[len(self.name):], []).append(
                (labels.get("le"), value))
        for parts in series.values():
            assert set(parts) == {"_bucket", "_sum", "_count"}, self.name
            bounds = [number_of(le, self.name) for le, _ in parts["_bucket"]]
            counts = [v for _, v in parts["_bucket"]]
            assert bounds == sorted(set(bounds)) and math.isinf(bounds[-1]), self.name
            assert counts == sorted(counts) and counts[-1] == parts["_count"][0][1], self.name


def parse(data):
    """{family name: Family}"""
    text = data.decode("utf-8")
    assert text.endswith("\n") and "\r" not in text and "\n\n" not in text
    families, current = {}, None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, _, words = line[7:].partition(" ")
            assert NAME.fullmatch(name) and words and name not in families, line
            assert not re.search(r"\\(?![\\n])", words), line
            current = families[name] = Family(name, words)
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert current and name == current.name and not current.type and kind in TYPES, line
            current.type = kind
        else:
            name = NAME.match(line)
            assert name and current and current.type, line
            rest = line[name.end():]
            assert name.group().startswith(current.name), line
            labels, rest = labels_of(rest, line) if rest[0] == "{" else ({}, rest)
            assert rest[0] == " " and " " not in rest[1:], line
            current.add(name.group(), labels, number_of(rest[1:], line), line)
    for f in families.values():
        f.check()
    return families
