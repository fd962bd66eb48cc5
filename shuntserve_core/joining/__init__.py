"""Machines that come by themselves: each dials the control plane and waits for a node to be.

* `messages`: what the two sides say
* `desk`: the control plane's side, at which machines show tickets and certificates
* `machine`: a machine's side, `shuntserve node join`

Nothing is decided here: the desk says who is there, and has agents started and ended where it is
told to.
"""
