"""The front: a strict stand-in for the edge of Google's services, between us and the emulators.

The emulators have no TLS, no tokens, no limit of streams, no round trip, no
short answers and hardly a limit; the services have them all. The front is a
process of its own that plays these manners, and faults and permissions by
rule: `python -m tests.front`. Tests steer it through `tests.front.client`,
which loads nothing of gRPC.
"""
