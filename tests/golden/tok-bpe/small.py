#!/usr/bin/env python3
"""Makes small.json: small tokenizer.json files with texts, and what the tokenizers package makes of them.

    small.py [SEED [MODELS]] > small.json

The models are trained on random text, and mix what real ones seldom show together: byte-level and
character-level, byte fallback, unknown tokens, prefixes and suffixes, both spellings of merges, every
normaliser, pre-tokeniser and decoder that tok-bpe knows, added tokens with every flag.
tests/unit/test_bpe_small.c reads it. Each text is encoded twice: as ordinary text and with special tokens.
"""
import json
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WORDS = ["the ", "a", "ab", " ab", "ba", "\u00e9", "e\u0301", "\u6f22\u5b57", "\u3042", " ", "  ", "\n", "\r\n", "1", "23", "!", "?!", "'s",
         "X", "\u0130", "\u00df", "\U0001f600", "\u00a0", "\u3000", "\u2581", "_", "\ufb01", "\uac00", "\u1112\u1161\u11ab", "<s>", "<x>",
         "<0x41>", "\u0085", "\u180e", "\u24d0", "\u0e33", "\u00bd", "\u2167", "zz", "-"]


def text(r, n):
    return "".join(r.choice(WORDS) for _ in range(r.randrange(1, n)))


def normalizer(r):
    one = lambda: r.choice([
        normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Lowercase(),
        normalizers.Strip(left=r.random() < 0.5, right=r.random() < 0.5), normalizers.Replace(" ", "\u2581"),
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Prepend("\u2581"), normalizers.Replace("AB", "b")])
    k = r.random()
    return None if k < 0.3 else one() if k < 0.6 else normalizers.Sequence([one() for _ in range(r.randrange(1, 4))])


def pre(r, byte_level):
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    one = lambda: r.choice([
        pre_tokenizers.Split(r.choice([" ", "ab", Regex(r"\s+"), Regex(r"\p{L}+"), Regex(r"\w+|[^\w\s]+"), Regex(r"(?=\d)"),
                                       Regex(r"(?i:'S|x)|[^\S\n]+"), Regex(r"\p{Han}|\p{N}{1,2}")]), r.choice(behaviors),
                             invert=r.random() < 0.3),
        pre_tokenizers.Digits(individual_digits=r.random() < 0.5), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Whitespace(),
        pre_tokenizers.Punctuation(r.choice(behaviors)),
        pre_tokenizers.Metaspace(prepend_scheme=r.choice(["always", "first", "never"]), split=r.random() < 0.5)])
    parts = [one() for _ in range(r.randrange(0, 3))]
    if byte_level:
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=r.random() < 0.4, use_regex=r.random() < 0.6))
    return None if not parts else parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def decoder(r, byte_level):
    if byte_level:
        return decoders.ByteLevel()
    return r.choice([
        None, decoders.Metaspace(prepend_scheme=r.choice(["always", "first", "never"])), decoders.Fuse(),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Strip("a", 1, 0), decoders.Fuse()])])


def source_of(t):
    return json.dumps(json.loads(t.to_str())["normalizer"])


def model(r):
    byte_level = r.random() < 0.5
    unk = "<unk>" if r.random() < 0.6 else None
    suffix = "</w>" if r.random() < 0.15 else None
    prefix = "##" if not suffix and not byte_level and r.random() < 0.15 else None
    t = Tokenizer(models.BPE(unk_token=unk, fuse_unk=r.random() < 0.5))
    t.normalizer = normalizer(r)
    t.pre_tokenizer = pre(r, byte_level)
    more = {k: v for k, v in (("end_of_word_suffix", suffix), ("continuing_subword_prefix", prefix)) if v}
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level and r.random() < 0.9 else []
    fallback = not byte_level and r.random() < 0.4
    special = (["<unk>"] if unk else []) + ([f"<0x{i:02X}>" for i in range(256)] if fallback else [])
    trainer = trainers.BpeTrainer(vocab_size=r.randrange(60, 420) + len(special), show_progress=False, initial_alphabet=alphabet,
                                  special_tokens=special, limit_alphabet=300, **more)
    # No merge leads to a special token: tok-bpe drops such merges, the reference follows them.
    t.train_from_iterator([text(r, 60).replace("<s>", "") for _ in range(150)], trainer)
    j = json.loads(t.to_str())
    # The trainer makes special tokens of the bytes; real files have them in the vocabulary only.
    j["added_tokens"] = [a for a in j["added_tokens"] if a["content"] == "<unk>"]
    j["model"]["byte_fallback"] = fallback
    j["model"]["ignore_merges"] = r.random() < 0.3
    if r.random() < 0.5:
        j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]] if not any(" " in a for m in j["model"]["merges"] for a in m) \
            else j["model"]["merges"]
    t = Tokenizer.from_str(json.dumps(j))
    t.decoder = decoder(r, byte_level)
    flags = lambda: dict(single_word=r.random() < 0.3, lstrip=r.random() < 0.3, rstrip=r.random() < 0.3, normalized=r.random() < 0.4)
    if "Prepend" in source_of(t): # how such tokens decode then differs between versions of the package
        flags = lambda: dict(single_word=r.random() < 0.3, lstrip=r.random() < 0.3, rstrip=r.random() < 0.3, normalized=False)
    t.add_special_tokens([AddedToken("<s>", **flags())])
    t.add_tokens([AddedToken("<x>", **flags()), AddedToken("zz", **flags())])
    return json.dumps(j | {k: json.loads(t.to_str())[k] for k in ("added_tokens", "decoder")}, ensure_ascii=r.random() < 0.5), t


def main():
    r = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    out = []
    while len(out) < (int(sys.argv[2]) if len(sys.argv) > 2 else 60):
        source, t = model(r)
        t = Tokenizer.from_str(source)
        lines = []
        for i in range(12):
            s = text(r, 20)
            t.encode_special_tokens = i % 2 == 0
            ids = t.encode(s, add_special_tokens=False).ids
            lines.append([s, i % 2, ids, t.decode(ids)])
        out.append([source, lines])
    json.dump({"note": "tokenizers " + tokenizers.__version__ + ", tests/golden/tok-bpe/small.py", "models": out}, sys.stdout,
              separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
