import signal

import pytest

from ddae_jax.training.interruption import StopRequest


def test_nothing_is_asked_for_at_first():
    with StopRequest() as stop:
        assert not stop
        assert stop.received is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_and_is_logged(number, caplog):
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop
        assert stop.received == number
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [number.name]


def test_handlers_are_put_back():
    def own(number, frame):
        raise AssertionError

    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    try:
        signal.signal(signal.SIGTERM, own)
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != own
        assert signal.getsignal(signal.SIGTERM) == own
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
        with pytest.raises(ZeroDivisionError), StopRequest():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_ends_at_once(first):
    with StopRequest() as stop:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == first


def test_a_repeated_sigterm_stays_a_request():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_ctrl_c_works_again_afterwards():
    # Processes that a shell starts in the background ignore it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
