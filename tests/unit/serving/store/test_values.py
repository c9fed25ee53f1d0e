"""A lease ends when its last holder releases it."""

from lorakit.serving.store.values import Lease


def test_it_is_given_back_once():
    calls = []
    lease = Lease("a", give_back=lambda: calls.append(None))
    with lease:
        lease.hold()
    assert not calls
    lease.release()
    assert len(calls) == 1


def test_the_base_alone_has_nothing_to_give_back():
    with Lease() as base:
        assert (base.carried_name, base.content_hash) == (None, "")
