"""Makes images.json: what Pillow makes of pictures, as hashes of the pixels a CLIP tower would get.

    python3 make.py ../../../../shared/data/images > images.json

"shared" has the pictures of that folder by name, "small" pictures made here, in base64. Of each: the size,
and half the SHA-256 of 336 x 336 RGB pixels, cut out of the middle ("crop") and inside a square ("pad"). "bad"
lists files of the folder that are no picture, or one that Pillow refuses. Needs Pillow and numpy.
"""
import base64
import hashlib
import io
import json
import os
import struct
import sys
import warnings
import zlib

import numpy as np
from PIL import Image

EDGE = 336
PAD = (122, 116, 104)  # int(mean * 255) of CLIP
warnings.simplefilter("ignore")


def resize(im):
    """The shortest edge becomes EDGE, the centre is cut out, as CLIPImageProcessor does."""
    w, h = im.size
    short, long = (w, h) if w <= h else (h, w)
    other = int(EDGE * long / short)
    size = (EDGE, other) if w <= h else (other, EDGE)
    im = np.asarray(im.resize(size, Image.Resampling.BICUBIC))
    top, left = (im.shape[0] - EDGE) // 2, (im.shape[1] - EDGE) // 2
    return im[top:top + EDGE, left:left + EDGE]


def square(im):
    """LLaVA's expand2square."""
    w, h = im.size
    if w == h:
        return im
    side = max(w, h)
    out = Image.new("RGB", (side, side), PAD)
    out.paste(im, ((side - w) // 2, (side - h) // 2))
    return out


def facts(data):
    im = Image.open(io.BytesIO(data))
    im.load()
    rgb = im.convert("RGB")
    return {"width": rgb.width, "height": rgb.height,
            "crop": hashlib.sha256(resize(rgb).tobytes()).hexdigest()[:32],
            "pad": hashlib.sha256(resize(square(rgb)).tobytes()).hexdigest()[:32]}


def folder(root):
    good, bad = {}, []
    for at, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = os.path.join(at, name)
            short = os.path.relpath(path, root)
            data = open(path, "rb").read()
            if name.endswith((".txt", ".tsv", ".csv", ".LICENSE")):
                continue
            try:
                if not data.startswith((b"\x89PNG", b"\xff\xd8\xff")):
                    raise ValueError
                good[short] = facts(data)
            except Exception:  # whatever Pillow raises
                bad.append(short)
    return good, bad


def saved(im, **how):
    out = io.BytesIO()
    im.save(out, **how)
    return out.getvalue()


def png(width, height, depth, kind, rows, *chunks):
    """A PNG file by hand, for kinds that Pillow does not write."""
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + r for r in rows), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*c) for c in chunks)
            + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def small():
    rng = np.random.default_rng(4)
    y, x = np.mgrid[0:37, 0:53]
    rgb = np.stack([x * 4, y * 6, (x * y) % 256], -1).astype(np.uint8)
    rgb[5:20, 8:30] = rng.integers(0, 256, (15, 22, 3))
    im = Image.fromarray(rgb)
    tall = Image.fromarray(rgb[:, :5])
    alpha = Image.fromarray(np.dstack([rgb, rng.integers(0, 256, (37, 53))]).astype(np.uint8))
    g16 = rng.integers(0, 1200, (9, 7)).astype(">u2")
    cmyk = Image.fromarray(rng.integers(0, 256, (16, 24, 4)).astype(np.uint8), "CMYK")
    wide = Image.fromarray(rng.integers(0, 256, (2, 700, 3)).astype(np.uint8))
    exact = Image.fromarray((np.mgrid[0:336, 0:336].sum(0) // 2 % 256).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: not applied
    return {
        "rgb.png": saved(im, format="PNG"),
        "rgb.jpg": saved(im, format="JPEG", quality=85),
        "rgb444.jpg": saved(im, format="JPEG", quality=95, subsampling=0),
        "progressive.jpg": saved(im, format="JPEG", progressive=True, quality=70),
        "turned.jpg": saved(im, format="JPEG", exif=exif),
        "grey.jpg": saved(im.convert("L"), format="JPEG"),
        "cmyk.jpg": saved(cmyk, format="JPEG", quality=90),
        "grey.png": saved(im.convert("L"), format="PNG"),
        "bits.png": saved(im.convert("1"), format="PNG"),
        "palette.png": saved(im.convert("P", palette=Image.Palette.ADAPTIVE, colors=11), format="PNG"),
        "rgba.png": saved(alpha, format="PNG"),
        "la.png": saved(alpha.convert("LA"), format="PNG"),
        "tall.png": saved(tall, format="PNG"),
        "wide.png": saved(wide, format="PNG"),
        "dot.png": saved(im.crop((7, 7, 8, 8)), format="PNG"),
        "exact.png": saved(exact, format="PNG", optimize=True),
        "grey2.png": png(5, 2, 2, 0, [b"\x1b\x40", b"\xe4\x80"]),
        "grey4.png": png(3, 2, 4, 0, [b"\x0f\x70", b"\xa3\x10"]),
        "grey16.png": png(7, 9, 16, 0, [r.tobytes() for r in g16]),
        "rgb16.png": png(3, 3, 16, 2, [r.tobytes() for r in
                                       rng.integers(0, 65536, (3, 9)).astype(">u2")]),
        "la16.png": png(3, 3, 16, 4, [r.tobytes() for r in
                                      rng.integers(0, 65536, (3, 6)).astype(">u2")]),
        "keyed.png": png(2, 2, 8, 2, [bytes(range(6)), bytes(range(6, 12))],
                         (b"tRNS", b"\0\0\0\1\0\2")),
        "index.png": png(4, 1, 8, 3, [b"\0\1\2\xc8"], (b"PLTE", b"\x10\x20\x30\x40\x50\x60"),
                         (b"tRNS", b"\0")),
    }


def main():
    good, bad = folder(sys.argv[1])
    made = {n: {"base64": base64.b64encode(d).decode(), **facts(d)} for n, d in small().items()}
    json.dump({"shared": good, "bad": bad, "small": made}, sys.stdout, indent=0, sort_keys=True)
    print()


main()
