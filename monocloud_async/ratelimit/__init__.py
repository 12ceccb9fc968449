"""When a request may go out: the rules, the learnt rate, and the queue in front of them."""
