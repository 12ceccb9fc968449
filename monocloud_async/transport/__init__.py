"""One request and its answer, two ways: through `ClientSession`, or the fast one."""
