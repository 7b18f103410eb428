# SPDX-License-Identifier: Apache-2.0
"""Runs inside the sandbox: two processes, so that the tested code never holds the verdict.

    host --job--> judge --fork--> player        the player runs the solution: it was forked before
      ^             |   <-calls->               the tests were read, and has neither the job's nor
      +--verdict----+                           the verdict's descriptor

The tests run in the judge and call the solution by messages. Values cross as plain data and are
rebuilt from builtin types, so an object that claims to equal everything is worth nothing. All a
hostile solution can send are values, and the right values are what is asked for; leaving early, or
writing a verdict of its own, is no answer.

This file is sent as text to a bare interpreter: it imports the standard library only, and nothing
of midjax imports it. `exec` is its trade; nothing else in midjax may have it.
"""

import builtins
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import types
from typing import Any, NoReturn

LONGEST = 64 << 20  # bytes of one message
EXACT = 1 << 53


def encode(value: Any, other) -> Any:
    """JSON for a value of builtin types, subclasses as their base; `other` writes what is left."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or type(value) in (bool, str) else str.__str__(value)
    if isinstance(value, int):
        return int(value) if -EXACT < value < EXACT else {"i": hex(value)}
    if isinstance(value, float):
        return {"f": float.hex(value)}
    if isinstance(value, complex):
        return {"c": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"b": value.hex()}
    if isinstance(value, list):
        return [encode(item, other) for item in value]
    for kind, tag in ((tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return {tag: [encode(item, other) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(k, other), encode(v, other)] for k, v in value.items()]}
    if isinstance(value, range):
        return {"g": [value.start, value.stop, value.step]}
    return other(value)


def decode(data: Any, other) -> Any:
    """What `encode` wrote; `other(tag, content)` reads the tags that are not values."""
    if isinstance(data, list):
        return [decode(item, other) for item in data]
    if not isinstance(data, dict):
        return data
    [(tag, content)] = data.items()
    if tag == "i":
        return int(content, 16)
    if tag == "f":
        return float.fromhex(content)
    if tag == "c":
        return complex(*map(float.fromhex, content))
    if tag == "b":
        return bytes.fromhex(content)
    if tag in ("t", "s", "z"):
        kind = {"t": tuple, "s": set, "z": frozenset}[tag]
        return kind(decode(item, other) for item in content)
    if tag == "d":
        return {decode(k, other): decode(v, other) for k, v in content}
    if tag == "g":
        return range(*content)
    return other(tag, content)


class Pipe:
    """JSON lines over two descriptors."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = os.fdopen(read, "rb"), write

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.write, data) :]

    def receive(self) -> Any:
        """Raises EOFError when the other side is gone, ValueError for what is no message."""
        line = self.read.readline(LONGEST)
        if not line:
            raise EOFError
        if not line.endswith(b"\n"):
            raise ValueError(f"a value of more than {LONGEST} bytes, or half a message")
        return json.loads(line)


class Player:
    """Keeps what plain data can't carry, and does as the judge asks."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.kept = pipe, list[Any]()

    def keep(self, value: Any) -> dict:
        if isinstance(value, types.ModuleType):
            return {"m": value.__name__}
        if "numpy" in sys.modules and type(value).__module__ == "numpy":
            return encode(value.tolist(), self.keep)
        self.kept.append(value)
        return {"h": [len(self.kept) - 1, type(value).__name__]}

    def held(self, tag: str, content: Any) -> Any:
        assert tag == "r", tag
        return self.kept[content]

    def do(self, verb: str, index: int, *rest: Any) -> Any:
        thing = self.kept[index]
        if verb == "call":
            args, kwargs = decode(rest[0], self.held), decode(rest[1], self.held)
            return thing(*args, **kwargs)
        if verb == "attr":
            return getattr(thing, rest[0])
        if verb == "set":
            return setattr(thing, rest[0], decode(rest[1], self.held))
        return list(thing)  # "iter"

    def serve(self, source: str) -> None:
        scope: dict[str, Any] = {"__name__": "solution"}
        self.kept.append(scope)
        try:
            exec(compile(source, "solution.py", "exec"), scope)  # noqa: S102
            names = {name: value for name, value in scope.items() if not name.startswith("__")}
            self.pipe.send({"ok": sorted(names)})
        except BaseException as error:
            self.pipe.send(refusal(error, source))
            return
        while True:
            verb, *rest = self.pipe.receive()
            try:
                value = scope[rest[0]] if verb == "name" else self.do(verb, *rest)
                answer = {"ok": encode(value, self.keep)}
            except BaseException as error:
                answer = refusal(error, source)
            flush()
            self.pipe.send(answer)


def refusal(error: BaseException, source: str) -> dict:
    """The answer when the solution raised; its traceback goes to stderr."""
    if not isinstance(error, MemoryError):
        flush()
        import linecache
        import traceback

        linecache.cache["solution.py"] = (len(source), None, source.splitlines(True), "solution.py")
        traceback.print_exc(limit=-8)
    try:
        text = str(error)[:500]
    except BaseException:
        text = "(its message can't be read)"
    return {"raised": [type(error).__name__, text]}


def flush() -> None:
    """What was printed, before anything ends this process. Whatever sys.stdout is by now."""
    with contextlib.suppress(BaseException):
        sys.stdout.flush()


def play(job: dict, read: int, write: int) -> NoReturn:
    """The forked child: gives up everything but its pipe, then runs the solution."""
    try:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        for descriptor in range(3, 64):
            if descriptor not in (read, write):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        # After the fork: what exists already counts, and the machine's other sandboxes may too.
        most = job["processes"]
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        Player(Pipe(read, write)).serve(job["solution"])
    except (EOFError, BrokenPipeError):
        pass
    except BaseException as error:  # such as a lack of memory in our own code
        os.write(2, f"{type(error).__name__}: {error}\n".encode()[:500])
    flush()
    os._exit(0)


class Ended(BaseException):
    """The run is over: (status, reason). Not an Exception, so that no test can catch it."""


class Remote:
    """Something of the solution's that plain data can't carry: a function, an object."""

    __slots__ = ("_ask", "_index", "_kind")

    def __init__(self, ask, index: int, kind: str) -> None:
        for name, value in (("_ask", ask), ("_index", index), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self._index, encode(args, plain), encode(kwargs, plain))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attr", self._index, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self._index, name, encode(value, plain))

    def __iter__(self):
        return iter(self._ask("iter", self._index))

    def __repr__(self) -> str:
        return f"<{self._kind} of the solution>"


def plain(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"r": value._index}
    raise TypeError(f"The tests hand the solution a {type(value).__name__}, which can't be sent.")


class Judge:
    """Runs the tests and calls the player."""

    def __init__(self, pipe: Pipe, child: int, limits: dict) -> None:
        self.pipe, self.child, self.limits = pipe, child, limits
        self.ended: Ended | None = None

    def remote(self, tag: str, content: Any) -> Any:
        if tag == "m":
            if content.partition(".")[0] not in sys.stdlib_module_names | {"numpy"}:
                raise Ended("error", f"the tests use module {content!r} of the solution")
            return importlib.import_module(content)  # the judge's own, not the solution's
        index, kind = content if tag == "h" else (None, None)
        if not isinstance(index, int) or not isinstance(kind, str):
            raise ValueError(f"no value has the tag {tag!r}")
        return Remote(self.ask, index, kind)

    def ask(self, *question: Any) -> Any:
        try:
            self.pipe.send(question)
            return self.answer()
        except BrokenPipeError:
            self.ended = self.ended or self.death()
        except Ended as ended:
            self.ended = self.ended or ended
        raise self.ended  # again and again: a bare `except` of the tests is not the last word

    def answer(self) -> Any:
        try:
            message = self.pipe.receive()
            [(key, value)] = message.items()
            if key == "ok":
                return decode(value, self.remote)
            name, text = map(str, value)
        except EOFError:
            raise self.death() from None
        except MemoryError:
            raise Ended("memory", "a value too large for the tests") from None
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise Ended("error", f"the solution sent no value: {error}"[:300]) from None
        raise raised(name, text)

    def death(self) -> Ended:
        _, status, usage = os.wait4(self.child, 0)
        used = usage.ru_utime + usage.ru_stime
        cpu = self.limits["cpu_seconds"]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= cpu):
                return Ended("timeout", f"{cpu} s of processor time")
            if number == signal.SIGXFSZ:
                return Ended("error", f"a file of more than {self.limits['files_bytes']} bytes")
            return Ended("error", f"ended by {signal.Signals(number).name} before the tests did")
        code = os.WEXITSTATUS(status)
        return Ended("error", f"it exited with status {code} before the tests ended")

    def run(self, job: dict) -> None:
        """Raises Ended unless every test ran to its end."""
        scope: dict[str, Any] = {"__name__": "tests"}
        defined: set[str] = set()
        try:
            defined = set(self.answer())
            exec(compile(job["preamble"], "preamble.py", "exec"), scope)  # noqa: S102
            for name in job["names"]:
                if name in defined:
                    scope[name] = self.ask("name", name)
            exec(compile(job["tests"], "tests.py", "exec"), scope)  # noqa: S102
        except Exception as error:
            raise self.verdict(error, job, defined) from None
        except (SystemExit, KeyboardInterrupt) as error:
            raise Ended("error", f"the tests raised {type(error).__name__}") from None
        if self.ended:
            raise self.ended

    def verdict(self, error: Exception, job: dict, defined: set[str]) -> Ended:
        text = f"{type(error).__name__}: {error}"[:300].strip(": ")
        if getattr(error, "of_the_solution", False):
            if isinstance(error, MemoryError) or "[Errno 12]" in text:  # ENOMEM, of mmap
                return Ended("memory", f"more than {self.limits['memory_bytes']} bytes")
            if isinstance(error, BlockingIOError) or "can't start new thread" in text:
                text += f" (the limit is {self.limits['processes']} processes)"
            return Ended("error", f"the solution raised {text}")
        if isinstance(error, MemoryError):
            return Ended("memory", "the tests ran out of memory")
        missing = [name for name in job["names"] if name not in defined]
        if isinstance(error, NameError) and missing:
            return Ended("error", f"the solution defines no {', '.join(missing)}")
        line, where = "", error.__traceback__
        while where is not None:
            if where.tb_frame.f_code.co_filename == "tests.py":
                line = job["tests"].splitlines()[where.tb_lineno - 1].strip()[:300]
            where = where.tb_next
        status = "failed" if isinstance(error, AssertionError) else "error"
        return Ended(status, f"{text} in the tests: {line}")


def raised(name: str, text: str) -> Exception:
    """An exception of the solution, as one of the builtin classes if it has the name of one."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = type(name if name.isidentifier() else "Exception", (Exception,), {})
    try:
        error = kind(text)
    except TypeError:  # the Unicode errors want five arguments
        error = Exception(f"{name}: {text}")
    error.of_the_solution = True  # type: ignore[attr-defined]
    return error


def take(size: int) -> bytes:
    """Exactly `size` bytes of stdin: a buffer would read the tests before the fork."""
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise EOFError("the job ends too early")
        data += part
    return data


def take_json() -> dict:
    return json.loads(take(int.from_bytes(take(8), "big")))


def settle(job: dict) -> None:
    """Gives up rights and sets the limits that both processes share."""
    if job["uid"] is not None:
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    limits, cpu = job["limits"], job["limits"]["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # One more second until SIGKILL, for who ignores SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["files_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits["open_files"],) * 2)
    sys.path += job["paths"]


def main() -> None:
    job = take_json()
    settle(job)
    to_player, from_player = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        play(job, to_player[0], from_player[1])
    os.close(to_player[0])
    os.close(from_player[1])
    channel = os.dup(1)
    os.dup2(2, 1)  # what the tests print is no verdict
    judge = Judge(Pipe(from_player[0], to_player[1]), child, job["limits"])
    try:
        judge.run(take_json())
        status, reason = "passed", ""
    except Ended as ended:
        status, reason = ended.args
    os.write(channel, json.dumps([status, " ".join(reason.split())]).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
