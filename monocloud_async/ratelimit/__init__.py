"""Decides when requests may be sent: the rules, the learnt rate, and the admission queue."""
