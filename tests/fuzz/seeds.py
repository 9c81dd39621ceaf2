"""Where the search begins, and what it has found: each is run by every test."""

from __future__ import annotations

import base64
import json

from tests.fuzz.models import small_model
from tests.fuzz.targets import MANIFEST, PREPROCESSING, PREPROCESSOR

_LABELS = b'["tench", "goldfish", "crane", "crane"]'
_DEEP = b"[" * 100_000
_BOMB = b"classify:\n  top_k:\n  - &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"  - &%c [%s]\n" % (name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghi"
)
_MERGES = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c\n  <<: [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghi"
)

SEEDS: dict[str, list[bytes]] = {
    "manifest": [
        json.dumps(MANIFEST).encode(),
        json.dumps(MANIFEST | {"files": {"engine.onnx": {"sha256": "0" * 64, "bytes": 2**60}}}).encode(),
        json.dumps(MANIFEST | {"files": {"engine.onnx": {"sha256": "0" * 64, "bytes": 10**30}}}).encode(),
        json.dumps(MANIFEST | {"files": {"../x": {"sha256": "0" * 64, "bytes": 1}}}).encode(),
        json.dumps(MANIFEST | {"versions": {"\x1b[31m\n": "\ud800"}}).encode(),
        json.dumps(MANIFEST)[:-1].encode() + b', "format": 3}',
        b'{"format": "' + b"x" * 10**5 + b'"}',
        b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}",
        _DEEP,
    ],
    "bundle": [
        b"\x00" + _LABELS,
        b"\xff" + PREPROCESSING,
        b'\x00["a\\u001b[31m", "b\\n", "c", "d"]',
        b'\x00["a\\ud800", "b", "c", "d"]',
        b'\xff{"resize": null, "crop": [8, 8], "mean": [NaN, 1e999, 0], "std": [1, 1, 1]}',
        b'\xff{"resize": {"kind": "shortest_edge", "edge": 1000000000000}, "crop": [8, 8]}',
        b'\xff{"resize": {"kind": "sh\x7frtest_edge", "edge": 8}, "crop": [8, 8]}',
        b"\xff" + _DEEP,
    ],
    "config": [
        b"classify: {top_k: 5, batch_size: 8, decode: exact}\nbuild:\n  precision: fp32\n  batch: 1,8,32\n",
        _BOMB,
        _MERGES,
        b"classify: {top_k: 0x" + b"f" * 5000 + b"}",
        b"? 0x" + b"f" * 5000 + b"\n: 1",
        b'"\\e[31m\\n": 1',
        b"classify: {top_k: 1, top_k: 2}",
        b"classify: {top_k: " + b"x" * 5000 + b"}",
        b"a: !!python/object/apply:os.system [id]",
        b"? " + b"x" * 4000 + b"\n: 1",
        b"a: !" + b"x" * 2000 + b" b",
        b"[" * 100,
    ],
    "engine_recipe": [
        b"source: ../model\noutput: ./built\nprecision: int8\ncalibration: images\nbatch: [1, 4, 8]\n",
        b'source: "a\\0b"',
        b'source: "a\\ud800b"',
        b"source: ./m\nworkspace_gib: .nan\nmin_agreement: .inf\n",
    ],
    "pipeline_recipe": [
        b"inputs: ['images/*.jpg', /b]\noutput: o.csv\ntop_k: 3\n",
        b"inputs: &a [*a]\noutput: o.csv",
        b'inputs: ["a\\0b"]\noutput: "o\\0.csv"',
    ],
    "labels_file": [b"tench\ngoldfish\n", b"\xef\xbb\xbfa\r\nb\r\n", b"a\x1b[31m\nb\x00\n", b"a\n\xff\n", b"a\rb\nc\n"],
    "model_config": [
        b'{"model_type": "vit", "id2label": {"0": "tench", "1": "goldfish"}}',
        b'{"id2label": {"' + b"9" * 5000 + b'": "a"}}',
        b'{"id2label": {"0": "a", "00": "b", "1": "c"}}',
        b'{"id2label": {"0": "a\\u001b", "1": "\\ud800"}}',
        _DEEP,
    ],
    "preprocessor_config": [
        PREPROCESSOR,
        b'{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 100}, "crop_pct": 1e-320}',
        b'{"rescale_factor": 1' + b"0" * 400 + b"}",
        b'{"image_mean": [1' + b"0" * 400 + b", 1, 1]}",
        b'{"size": ' + b"[" * 920 + b"]" * 920 + b"}",
        b'{"\\u001b[31m\\n": 3}',
        b'{"image_processor_type": "\\u001b[31m\\n"}',
    ],
    "label_lines": [
        b"ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000002 tench\n",
        b"1\n4\n",
        b"\xc2\xb2\n",
        b"9" * 5000,
        b"a " + b"9" * 5000,
        b"ILSVRC2012_val_00000001.JPEG \x1b[31m\n",
    ],
    "label_table": [
        b"file,class_index,wnid\nILSVRC2012_val_00000001.JPEG,2,n\n",
        b'"ILSVRC2012_val_00000001","tench"\n',
        b"a," + b"9" * 5000,
        b"a," + b"x" * 200_000,
        b"a\0,b\n",
    ],
    "devkit": [
        b"n01440764 1 tench\nn01443537 3 goldfish\nn02012849 2 crane\nn03126707 4 crane\n",
        b"n01440764 \xc2\xb2 x\n",
        b"n01440764 " + b"9" * 5000 + b" x\n",
        b"\xff\n",
        b"".join(b"n01440764 %d x\n" % number for number in range(1, 5)),
    ],
    "real_labels": [b"[[0], [1, 2], []]", b"[[true]]", b"[[NaN]]", _DEEP, b"[[1e999, 99999999999999999999]]"],
    "strict_json": [b'{"a": [1, -2.5e3, "\\u00e9", null, true]}', b'{"a": 1, "a": 2}', b"-0.0", b"1e-999", _DEEP],
    "onnx_bytes": [small_model(), small_model()[:300], b"", small_model().replace(b"images", b"im\xffges")],
    "onnx_edits": [
        b"",
        bytes(range(256)),
        b"\x01\x00" + b"\x07\x00" * 20,
        # Models that onnx takes and onnx_ir does not, to read and to write, and a file of weights with a long name.
        base64.b64decode("//8DAAcHAD9jGQAAAAAABAD//wQABwcABxkABABA/wdA/wcASBBI//8nJw=="),
        base64.b64decode("BwBBAAcABwAHAAcABwAHAAAHAC4AAAAAAAcABwC4AAcAAAcAAEMHAAcAAAcAAA=="),
        base64.b64decode("//8B+wcAAQc1//j/+P6KioqKiv//BwA7+fn5+fk6+fn5Ovn5+fn5+fn5+fn5+fn5+fn5+fn5+bkHAA=="),
    ],
}
