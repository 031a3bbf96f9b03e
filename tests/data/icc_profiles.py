"""ICC profiles for tests, made from Little CMS's sRGB profile or byte by byte."""

import struct
from collections.abc import Iterator

from PIL import Image, ImageCms

_D50 = struct.pack(">3i", 63190, 65536, 54061)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3() -> bytes:
    """Display P3: sRGB with P3's primaries (adapted to D50) and its name; both have one tone curve."""
    content = bytearray(srgb())
    primaries = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2920, 0.6922, 0.0419), b"bXYZ": (0.1571, 0.0666, 0.7841)}
    for name, start, _ in _tags(content):
        if name in primaries:
            content[start + 8 : start + 20] = struct.pack(">3i", *(round(value * 65536) for value in primaries[name]))
    return bytes(content).replace("sRGB built-in".encode("utf-16-be"), "Display P3   ".encode("utf-16-be"))


def linear_srgb() -> bytes:
    """sRGB with a linear tone curve, as GIMP and Krita embed it; its name still has "sRGB"."""
    content = bytearray(srgb())
    for name, start, size in _tags(content):
        if name.endswith(b"TRC"):
            content[start : start + size] = (b"para\0\0\0\0" + struct.pack(">HHi", 0, 0, 65536)).ljust(size, b"\0")
    return bytes(content).replace("sRGB built-in".encode("utf-16-be"), "Linear sRGB  ".encode("utf-16-be"))


def grey(gamma: float) -> bytes:
    """The profile of a grey image."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", "Grey", {b"kTRC": curve})


def scanner() -> bytes:
    """The profile of an input device: it converts to Lab by a table (A2B0), and has none for the way back (B2A0)."""
    corners = [(red, green, blue) for red in (0, 255) for green in (0, 255) for blue in (0, 255)]
    colours = Image.new("RGB", (8, 1))
    colours.putdata(corners)
    lab = ImageCms.profileToProfile(colours, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    values = bytes((value + 128) % 256 if n % 3 else value for n, value in enumerate(lab.tobytes()))  # a and b are signed
    identity, linear = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536), bytes(range(256)) * 3
    table = b"mft1\0\0\0\0" + bytes([3, 3, 2, 0]) + identity + linear + values + linear
    return _profile(b"scnr", b"RGB ", b"Lab ", "Scanner", {b"A2B0": table})


def _tags(content: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and size of the tags of a profile."""
    (n_tags,) = struct.unpack(">I", content[128:132])
    for number in range(n_tags):
        name, start, size = struct.unpack(">4sII", content[132 + 12 * number : 144 + 12 * number])
        yield name, start, size


def _profile(kind: bytes, space: bytes, connection_space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    """A profile of ICC version 2.4."""
    text = name.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _D50,
    } | tags
    table, data = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, connection_space)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + _D50
    return head.ljust(128, b"\0") + table + data
