"""The code of doc/drivers.md, and the TAP that the tests of drivers print."""
import os
import pathlib
import types

PAGE = pathlib.Path(os.environ["ENVCRYPT_TEST_DIR"]).parent / "doc" / "drivers.md"


def load(heading, **names):
    """A module of every Python block below the heading, at the line numbers of the page. names: what it starts with."""
    lines, inside, code = PAGE.read_text().splitlines(), False, False
    kept = []
    for line in lines:
        if line.startswith("## "):
            inside = line == f"## {heading}"
        fence = line.startswith("```")
        kept.append(line if inside and code and not fence else "")
        if fence:
            code = line == "```python"
    assert any(kept), f"{PAGE} has no Python below '{heading}'"
    module = types.ModuleType(names.pop("__name__", "recipe"))
    module.__dict__.update(names)
    exec(compile("\n".join(kept), str(PAGE), "exec"), module.__dict__)
    return module


def equals(got, expected, name):
    print(f"{'ok' if got == expected else 'not ok'} {name}", *([] if got == expected else [f": {got!r}, not {expected!r}"]), flush=True)


def holds(condition, name):
    equals(bool(condition), True, name)


def error_of(error, name, sqlstate, *words):
    """The exception has this SQLSTATE (None: any), and its text these words."""
    state = getattr(error, "sqlstate", None)
    fits = error is not None and sqlstate in (None, state) and all(word in str(error) for word in words)
    # what the type says of plaintext does not repeat it; COPY does, to the client
    fits = fits and not (state in ("22P02", "22P03") and "123-45-6789" in str(error).split("CONTEXT:  COPY")[0])
    equals("as expected" if fits else f"{type(error).__name__} {state} {error}", "as expected", name)


def raises(call, name, sqlstate, *words):
    try:
        call()
        error = None
    except Exception as caught:
        # an ORM's error has the driver's inside
        error = getattr(caught, "orig", None) or caught.__cause__ or caught
        error = error if getattr(error, "sqlstate", None) else getattr(error, "__cause__", None) or error
    error_of(error, name, sqlstate, *words)


def done():
    print("done", flush=True)
