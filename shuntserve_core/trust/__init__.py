"""Who belongs to a cluster: its certificate authority, and tickets by which machines come in.

* `authority`: certificates of a cluster's own, and the TLS that both sides of a connection ask for
* `tickets`: what a machine shows once to get its certificate

It needs `cryptography`, which comes with the extra `join`.
"""
