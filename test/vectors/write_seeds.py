#!/usr/bin/env python3
"""Writes the vectors of format1.json into DIR, one file each: the seeds of test/fuzz/value_fuzz.cpp.

    write_seeds.py DIR
"""

import json
import pathlib
import sys


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: write_seeds.py DIR")
    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    vectors = json.loads(pathlib.Path(__file__).with_name("format1.json").read_text("utf-8"))
    for vector in vectors["good"] + vectors["bad"]:
        if "value" in vector:
            (target / vector["name"]).write_bytes(bytes.fromhex(vector["value"]))
        if "text" in vector:
            (target / (vector["name"] + ".txt")).write_bytes(vector["text"].encode("utf-8"))


if __name__ == "__main__":
    main()
