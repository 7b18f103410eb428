# SPDX-License-Identifier: Apache-2.0
"""Processes meet, here as threads: all come, one is missing, or one does not belong."""

import concurrent.futures
import json
import socket

from midjax.distributed import meeting
from midjax.distributed import place as place_lib

HOST = socket.gethostname()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet(indices, number, *, seconds=20.0, facts=None, numbers=None, address=None):
    """What each of these processes gets: the hosts, or the error."""
    address = address or free_address()

    def one(index):
        own = (numbers or {}).get(index, number)
        place = place_lib.Place(address=address, number=own, index=index)
        try:
            return meeting.hold(place, (facts or {}).get(index, {}), seconds)
        except ValueError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(one, indices))


def test_all_come_in_any_order():
    assert meet([3, 1, 0, 2], 4) == [[HOST] * 4] * 4


def test_the_address_is_free_afterwards():
    address = free_address()
    for _ in range(2):
        assert meet([1, 0], 2, address=address) == [[HOST] * 2] * 2


def test_all_hear_who_is_missing():
    zero, two = meet([0, 2], 4, seconds=0.5)
    assert isinstance(zero, meeting.MissingError) and str(zero) == str(two)
    assert "2 of 4 processes did not come" in str(zero) and "in 0.5 s: 1, 3." in str(zero)
    assert f"Here are: 0 ({HOST}), 2 ({HOST})" in str(zero) and zero.exit_code == 134


def test_without_process_0_the_others_say_so():
    (one,) = meet([1], 2, seconds=0.3)
    assert isinstance(one, meeting.MissingError)
    assert f"Process 1 ({HOST}) did not reach process 0 at 127.0.0.1:" in str(one)


def test_who_does_not_belong_is_told():
    facts = {0: {"jax": "1"}, 1: {"jax": "2"}}
    for error in meet([0, 1], 2, facts=facts):
        assert isinstance(error, meeting.MeetingError)
        assert f"Process 1 ({HOST}) has jax = '2' instead of '1' of process 0" in str(error)
    for error in meet([0, 2], 2, numbers={2: 3}):
        assert f"Process 2 ({HOST}) has processes = 3 instead of 2 of process 0" in str(error)
    *_, zero = meet([1, 1, 0], 3)
    assert "Two processes say that they are process 1" in str(zero)


def test_strangers_and_those_who_left_are_not_counted():
    """Of what it says, nothing is believed but a line of JSON with a number that is missing."""
    address = free_address()
    host, _, port = address.partition(":")

    def visit(line):
        for _ in range(1000):
            try:
                guest = socket.create_connection((host, int(port)), timeout=20)
            except OSError:
                continue
            guest.sendall(line)
            return guest
        raise AssertionError("nobody listens")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        meetings = pool.submit(meet, [0], 3, address=address)
        visit(b"GET / HTTP/1.1\n").close()
        visit(b'{"process": [], "processes": 3, "host": "x"}\n').close()
        visit(b'{"process": 3, "processes": 3, "host": "x"}\n').close()
        visit(b"x" * (meeting._MOST_BYTES + 1)).close()
        left = json.dumps({"process": 1, "processes": 3, "host": "left"}).encode() + b"\n"
        visit(left).close()
        came = visit(left.replace(b"left", b"came"))
        visit(left.replace(b'"process": 1', b'"process": 2').replace(b"left", b"last"))
        (hosts,) = meetings.result(timeout=60)
        answer = came.recv(1000)
        came.close()
    assert hosts == [HOST, "came", "last"] and json.loads(answer) == {"hosts": hosts}


def test_a_port_in_use_is_told():
    with socket.create_server(("0.0.0.0", 0)) as other:
        (zero,) = meet([0], 2, address=f"127.0.0.1:{other.getsockname()[1]}")
    assert isinstance(zero, meeting.MeetingError) and "cannot listen at port" in str(zero)
