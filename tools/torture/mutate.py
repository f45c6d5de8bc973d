"""Damaged copies of a file: its bytes, the words and numbers of a text, or the fields of a protobuf message.

Every choice comes from one ``random.Random``, so that a seed names an input.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any, Final

MOST_CHANGES: Final = 4
TOKEN: Final = re.compile(rb'"[^"\n]*"|-?\d[\d.eE+_-]*|\w+')
NUMBERS: Final = (
    b"0", b"-1", b"1", b"nan", b"inf", b"-inf", b"1e999", b"1e-400", b"-0.0", b"2147483648", b"9223372036854775808",
    b"1000000000000", b"9" * 400, b"9" * 5000, b"true", b"null",
)  # fmt: skip
TEXTS: Final = (
    b'""', b'"\\u0000"', b'"../../x"', b'"/etc/passwd"', b'"\\ud800"', b'"' + b"x" * 5000 + b'"', b'"\\u001b[2J"',
    b'"(a+)+$"', b'"\xff"', b"[]", b"{}", b"[" * 3000, b'{"a":' * 3000, b'"NaN"', b'"%s%n"',
)  # fmt: skip
INTEGERS: Final = (0, 1, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**31), -(2**63))
WORDS: Final = (
    "", "x", "../../x", "/dev/zero", "\x1b[2J", "é" * 300, "Loop", "If", "Shape", "ConstantOfShape", "Conv", "Softmax",
)  # fmt: skip

Mutator = Callable[[bytes, Random], bytes]


def of_bytes(content: bytes, random: Random) -> bytes:
    """A few bytes, or a run of them, set, taken out, put in or moved; or the end cut off."""
    made = bytearray(content)
    for _ in range(random.randint(1, MOST_CHANGES)):
        at, length = random.randrange(len(made) + 1), random.choice((1, 2, 4, 8, 64, 1024))
        match random.randrange(7):
            case 0:
                made[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                value = random.choice(INTEGERS) % 2 ** (8 * min(length, 8))
                made[at : at + length] = value.to_bytes(min(length, 8), random.choice(("little", "big")))
            case 2:
                del made[at : at + length]
            case 3:
                made[at:at] = random.randbytes(length)
            case 4:
                made[at:at] = made[at : at + length] * random.choice((1, 2, 50))
            case 5:
                made[at : at + length] = bytes(min(length, len(made) - at))
            case _:
                del made[at:]
    return bytes(made)


def of_text(content: bytes, random: Random) -> bytes:
    """A word or number replaced, a line taken out, doubled or moved; sometimes as bytes."""
    for _ in range(random.randint(1, MOST_CHANGES)):
        found = list(TOKEN.finditer(content))
        lines = content.split(b"\n")
        match random.randrange(6):
            case 0 | 1 | 2 if found:
                token = random.choice(found)
                content = content[: token.start()] + random.choice(NUMBERS + TEXTS) + content[token.end() :]
            case 3:
                del lines[random.randrange(len(lines))]
                content = b"\n".join(lines)
            case 4:
                lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
                content = b"\n".join(lines)
            case _:
                content = of_bytes(content, random)
    return content


def of_zip(content: bytes, random: Random) -> bytes:
    """A member of the archive damaged, most often where it begins, and packed again so that its checksum is right."""
    if random.random() < 0.3:
        return of_bytes(content, random)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as made:
        chosen = random.choice(archive.namelist())
        for name in archive.namelist():
            member = archive.read(name)
            if name == chosen:
                end = random.choice((64, 128, 4096, len(member)))
                member = random.choice((of_bytes, of_text))(member[:end], random) + member[end:]
            made.writestr(name, member)
    return out.getvalue()


def of_headed(content: bytes, random: Random) -> bytes:
    """Of safetensors, the JSON that comes first, its length told anew; sometimes bytes."""
    if random.random() < 0.3:
        return of_bytes(content, random)
    length = int.from_bytes(content[:8], "little")
    header = of_text(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def of_digested(content: bytes, random: Random) -> bytes:
    """Of a receipt, whose digest is taken anew where it is still a JSON object: the damage is behind it."""
    from skdeploy.core.files import digest_json

    made = of_text(content, random)
    try:
        rest = {name: value for name, value in json.loads(made).items() if name != "digest"}
        return json.dumps(rest | {"digest": digest_json(rest)}).encode()
    except (ValueError, AttributeError, RecursionError):
        return made


def of_answers(content: bytes, random: Random) -> bytes:
    """Of a server's answers, a JSON of texts by address: one is damaged."""
    found = json.loads(content)
    address = random.choice(sorted(found))
    return json.dumps(found | {address: of_text(found[address].encode(), random).decode("latin-1")}).encode()


def of_image(content: bytes, random: Random) -> bytes:
    """An image of other sides or pixels, well packed: one of a pair no longer fits the other. Sometimes bytes."""
    import numpy as np
    from PIL import Image

    if random.random() < 0.5:
        return of_bytes(content, random)
    with Image.open(io.BytesIO(content)) as image:
        mode = random.choice(("L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA", image.mode))
        size = random.choice(
            (image.size, (1, 1), (image.width + 1, image.height), (image.height, image.width), (3000, 2))
        )
        values = np.frombuffer(random.randbytes(size[0] * size[1] * 4), np.uint8).reshape(size[1], size[0], 4)
        made = Image.fromarray(values).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            made = made.convert("I;16")
    out = io.BytesIO()
    made.save(out, "TIFF" if mode == "CMYK" else "PNG")
    return out.getvalue()


def of_part(content: bytes, random: Random) -> bytes:
    """Of a shard's part, the header or the archive, its digest taken anew; sometimes bytes."""
    if random.random() < 0.2:
        return of_bytes(content, random)
    magic = content[: content.index(b" ") + 1]
    header, _, packed = content[content.index(b"\n") + 1 :].partition(b"\n")
    if random.random() < 0.5:
        header = of_text(header, random)
    else:
        packed = of_zip(packed, random)
    rest = header + b"\n" + packed
    return magic + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def of_onnx(content: bytes, random: Random) -> bytes:
    """Fields of the model, at any depth, set to an extreme, cleared, doubled or taken from elsewhere; sometimes bytes."""
    from google.protobuf.message import EncodeError
    from onnx import ModelProto

    if random.random() < 0.2:
        return of_bytes(content, random)
    model = ModelProto.FromString(content)
    for _ in range(random.randint(1, MOST_CHANGES)):
        _change_field(model, random)
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError):  # text that is none
        return of_bytes(content, random)


def _change_field(message: Any, random: Random) -> None:
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = random.choice(fields)
        repeated, is_message = field.is_repeated, field.type == field.TYPE_MESSAGE
        if is_message and random.random() < 0.85:
            message = random.choice(value) if repeated else value
            continue
        if random.random() < 0.2:
            message.ClearField(field.name)
        elif repeated:
            _change_list(value, field, random, is_message=is_message)
        elif not is_message:
            setattr(message, field.name, _extreme(field, random))
        return


def _change_list(values: Any, field: Any, random: Random, *, is_message: bool) -> None:
    at = random.randrange(len(values))
    if random.random() < 0.4:
        del values[at]
    elif is_message:
        values.add().CopyFrom(values[at])
    elif random.random() < 0.5:
        values.append(values[at])
    else:
        values[at] = _extreme(field, random)


def _extreme(field: Any, random: Random) -> Any:
    if field.type == field.TYPE_STRING:
        return random.choice(WORDS)
    if field.type == field.TYPE_BYTES:
        return random.choice((b"", b"x", b"\xff" * 64, random.randbytes(144)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45))
    if field.type == field.TYPE_ENUM:
        return random.choice(field.enum_type.values).number
    wide = field.type in (field.TYPE_INT64, field.TYPE_UINT64)
    return random.choice([each for each in INTEGERS if wide or abs(each) < 2**31])
