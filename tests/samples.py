"""The recorded bodies in `tests/samples/`."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "samples"
USER_ID = "UOtBaOybB6dTpIJNrnkRw"


def body(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def user(user_id: str, **members: object) -> bytes:
    return json.dumps({"user_id": user_id, **members}).encode()
