"""Reads a whole tensorcask store as FORMAT.md describes it, with only Python's standard library.

`reader.py STORE` prints one JSON object per live key, in order of keys, and exits with 1 at the first error. It shares
no code with the library, which proves that FORMAT.md is complete.
"""

import base64
import json
import os
import re
import struct
import sys
import uuid
from zlib import crc32


class Damage(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Damage(what)


# --- flatbuffers, as far as Arrow's messages need them --------------------------------------------------------------


class Table:
    def __init__(self, data, at):
        self.data, self.at = data, at
        self.vtable = at - struct.unpack_from("<i", data, at)[0]
        self.size = struct.unpack_from("<H", data, self.vtable)[0]

    @staticmethod
    def root(data):
        return Table(data, struct.unpack_from("<I", data, 0)[0])

    def field(self, number):
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", self.data, self.vtable + slot)[0] if slot < self.size else 0
        return self.at + offset if offset else None

    def number(self, number, code, default=0):
        at = self.field(number)
        return default if at is None else struct.unpack_from("<" + code, self.data, at)[0]

    def follow(self, number):
        at = self.field(number)
        return None if at is None else at + struct.unpack_from("<I", self.data, at)[0]

    def table(self, number):
        at = self.follow(number)
        return None if at is None else Table(self.data, at)

    def string(self, number):
        at = self.follow(number)
        length = struct.unpack_from("<I", self.data, at)[0]
        return self.data[at + 4 : at + 4 + length].decode()

    def vector(self, number, size):
        """The offsets of the elements of a vector, `size` bytes each."""
        at = self.follow(number)
        if at is None:
            return []
        return [at + 4 + i * size for i in range(struct.unpack_from("<I", self.data, at)[0])]

    def tables(self, number):
        return [Table(self.data, at + struct.unpack_from("<I", self.data, at)[0]) for at in self.vector(number, 4)]


def message_at(data, offset):
    """The metadata of the message at an offset, and the bytes of prefix and metadata."""
    check(data[offset : offset + 4] == b"\xff\xff\xff\xff", f"no message at {offset}")
    length = struct.unpack_from("<i", data, offset + 4)[0]
    check(length > 0, f"the stream ends at {offset}")
    metadata = data[offset + 8 : offset + 8 + length]
    check(len(metadata) == length, "a message reaches beyond the file")
    return Table.root(metadata), length + 8


# --- xxh3, 64 bits, up to 128 bytes -----------------------------------------------------------------------------

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee0"
    "3590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51"
    "e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8"
    "d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
MASK = (1 << 64) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def fold(a, b):
    product = a * b
    return (product & MASK) ^ (product >> 64)


def avalanche(h):
    h = ((h ^ h >> 37) * 0x165667919E3779F9) & MASK
    return h ^ h >> 32


def avalanche64(h):
    h = ((h ^ h >> 33) * P64[1]) & MASK
    h = ((h ^ h >> 29) * P64[2]) & MASK
    return h ^ h >> 32


def xxh3(data, seed):
    """None for data longer than 128 bytes."""
    n = len(data)
    if n == 0:
        return avalanche64(seed ^ u64(SECRET, 56) ^ u64(SECRET, 64))
    if n <= 3:
        combined = data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8
        return avalanche64(combined ^ ((u32(SECRET, 0) ^ u32(SECRET, 4)) + seed & MASK))
    if n <= 8:
        seed ^= int.from_bytes(struct.pack("<I", seed & 0xFFFFFFFF), "big") << 32
        flip = (u64(SECRET, 8) ^ u64(SECRET, 16)) - seed & MASK
        keyed = (u32(data, n - 4) + (u32(data, 0) << 32)) & MASK ^ flip
        rotated = lambda x, r: (x << r | x >> (64 - r)) & MASK
        h = keyed ^ rotated(keyed, 49) ^ rotated(keyed, 24)
        h = h * 0x9FB21C651E98DF25 & MASK
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & MASK
        return h ^ h >> 28
    if n <= 16:
        low = u64(data, 0) ^ ((u64(SECRET, 24) ^ u64(SECRET, 32)) + seed & MASK)
        high = u64(data, n - 8) ^ ((u64(SECRET, 40) ^ u64(SECRET, 48)) - seed & MASK)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return avalanche((n + swapped + high + fold(low, high)) & MASK)
    if n <= 128:
        plus = lambda s: u64(SECRET, s) + seed & MASK
        minus = lambda s: u64(SECRET, s) - seed & MASK
        mix = lambda at, s: fold(u64(data, at) ^ plus(s), u64(data, at + 8) ^ minus(s + 8))
        h = n * P64[0] & MASK
        for i in reversed(range((n - 1) // 32 + 1)):
            h = (h + mix(16 * i, 32 * i) + mix(n - 16 * (i + 1), 32 * i + 16)) & MASK
        return avalanche(h)
    return None


def seed_of(header):
    """The seed of key hashes in a header or store.json; version 1 had none."""
    check(header["format"] in (1, 2, 3) and ("hash_seed" in header) == (header["format"] > 1), "a newer format")
    return int(header.get("hash_seed", "0"), 16)


def key_hash(key, hash_id, seed):
    h = xxh3(key, seed)
    return h if h is None or hash_id == 0 else h & ~(MASK >> hash_id)


# --- frames and seals ------------------------------------------------------------------------------------------------------

FRAME = struct.Struct("<8sIIQQQQIIQQ")


def frame_at(data, offset):
    record = data[offset : offset + 96]
    if len(record) < 96 or record[:8] != b"TCFRAME1" or crc32(record[:92]) != u32(record, 92):
        return None
    names = "magic seed rows first_row timestamp durable offset metadata structure_crc structure body".split()
    frame = dict(zip(names, FRAME.unpack_from(record)))
    frame["end"] = offset + 96
    return frame


def read_seal(data):
    check(data[-6:] == b"ARROW1", "no Arrow trailer")
    at = len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0] - 256
    record = data[at : at + 256]
    check(record[:8] == b"TCSEAL\r\n" and u32(record, 8) in (1, 2, 3) and u32(record, 12) == 256, "no seal of a known version")
    check(crc32(record[:252]) == u32(record, 252), "the seal's checksum")
    parts = {}
    for i, name in enumerate(["schema", "frames", "index", "keys", "replaced", "footer"]):
        offset, length, crc = struct.unpack_from("<QQI", record, 80 + 20 * i)
        parts[name] = data[offset : offset + length]
        check(len(parts[name]) == length and crc32(parts[name]) == crc, f"the checksum of {name}")
    lane, kind, hash_id = struct.unpack_from("<HBB", record, 32)
    numbers = dict(zip("sequence first last rows tombstones".split(), struct.unpack_from("<5Q", record, 40)))
    return dict(numbers, store=record[16:32], lane=lane, kind=kind, hash=hash_id, seed=u32(record, 36), crc=u32(record, 252)), parts


# --- segments --------------------------------------------------------------------------------------------------------------

UNITS = {"BOOL": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "C64": 4, "U64": 8, "I64": 8, "F64": 8}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}


def tensor_bytes(dtype, shape):
    elements = 1
    for dim in shape:
        elements *= dim
    return elements * BITS.get(dtype, 8 * UNITS.get(dtype, 1)) // 8


def unpack(stored, leaf, shape):
    """A packed row, or None if this Python lacks the zstd module that it needs."""
    how, data = stored[0], stored[1:]
    size = tensor_bytes(leaf["dtype"], shape)
    if how:
        try:
            from compression import zstd
        except ImportError:
            return None
        data = zstd.decompress(data)
    if how == 2:
        e = UNITS[leaf["dtype"]]
        n = len(data) // e
        data = bytes(data[b * n + i] for i in range(n) for b in range(e)) + data[n * e :]
    check(len(data) == size, "the size of a packed row")
    return data


class Segment:
    def __init__(self, path, name):
        with open(path, "rb") as file:
            self.data = data = file.read()
        self.name = name
        check(data[:8] == b"ARROW1\0\0", "no Arrow file")
        message, length = message_at(data, 8)
        check(message.number(1, "B") == 1, "the first message is no schema")
        entries = {entry.string(0): entry.string(1) for entry in message.table(2).tables(2)}
        self.header = header = json.loads(entries["tensorcask"])
        self.hash_seed = seed_of(header)
        self.id = (header["lane"], header["sequence"])
        self.seed = crc32(uuid.UUID(header["store"]).bytes + struct.pack("<HQ", *self.id))
        frame = frame_at(data, 8 + length)
        check(frame and frame["seed"] == self.seed and crc32(data[8 : 8 + length]) == frame["structure_crc"], "the schema")
        self.columns = [column.string(0) for column in message.table(2).tables(1)]
        self.start = frame["end"]
        self.frames, self.replaced, self.seal = [], [], None

    def read_sealed(self):
        self.seal, parts = read_seal(self.data)
        check((self.seal["lane"], self.seal["sequence"]) == self.id and self.seal["seed"] == self.seed, "the seal's name")
        self.frames = [frame_at(parts["frames"], at) for at in range(0, len(parts["frames"]), 96)]
        check(sum(frame["rows"] for frame in self.frames) == self.seal["rows"], "the number of rows")
        for at in range(0, len(parts["replaced"]), 16):
            lane, sequence = struct.unpack_from("<H6xQ", parts["replaced"], at)
            self.replaced.append((lane, sequence))
        blocks = Table.root(parts["footer"]).vector(3, 24)
        found = [struct.unpack_from("<qi4xq", parts["footer"], at) for at in blocks]
        check(found == [(f["offset"], f["metadata"], f["body"]) for f in self.frames], "the Arrow footer's blocks")
        self.index = parts["index"]

    def read_active(self):
        at, rows = self.start, 0
        while True:
            try:
                message, length = message_at(self.data, at)
                frame = frame_at(self.data, at + length + message.number(3, "q"))
            except (Damage, struct.error):
                return
            if not frame or (frame["seed"], frame["offset"], frame["first_row"]) != (self.seed, at, rows):
                return
            if crc32(self.data[at : at + frame["structure"]]) != frame["structure_crc"]:
                return
            self.frames.append(frame)
            at, rows = frame["end"], rows + frame["rows"]

    def rows(self):
        for frame in self.frames:
            start = frame["offset"]
            check(crc32(self.data[start : start + frame["structure"]]) == frame["structure_crc"], "a batch's structure")
            message, length = message_at(self.data, start)
            check(length == frame["metadata"] and message.number(1, "B") == 3, "no record batch")
            batch = message.table(2)
            check(batch.number(0, "q") == frame["rows"], "the rows of a batch")
            body = self.data[start + length : start + length + frame["body"]]
            spans = [struct.unpack_from("<qq", batch.data, at) for at in batch.vector(2, 16)]
            buffers = iter([body[offset : offset + size] for offset, size in spans])
            yield from self.batch_rows(frame, buffers)

    def batch_rows(self, frame, buffers):
        take = lambda count: [next(buffers) for _ in range(count)][-1]
        ints = lambda data: struct.unpack(f"<{len(data) // 4}i", data)
        variable = lambda offsets, data, unit=1: (lambda row: data[offsets[row] * unit : offsets[row + 1] * unit])
        fixed = lambda data, width: (lambda row: data[row * width : (row + 1) * width])
        rows = frame["rows"]
        if self.header["key"] == "u64":
            key = fixed(take(2), 8)
        else:
            offsets = ints(take(2))
            key = variable(offsets, take(1))
        crcs = struct.unpack(f"<{rows}I", take(2))
        times = struct.unpack(f"<{rows}Q", take(2)) if self.header.get("row_times") else None
        kinds = [leaf["type"] in ("tensor", "str", "bytes") for leaf in self.header["leaves"]]
        own = sum(kinds) if self.header["format"] >= 3 and len(kinds) > 1 else 0
        leaf_crcs = fixed(take(3), 4 * own) if own else None
        leaves = []
        for leaf in self.header["leaves"]:
            kind, packed = leaf["type"], leaf.get("codec", "none") != "none"
            if kind == "bool":
                bits = take(2)
                leaves.append((leaf, lambda row, bits=bits: bytes([bits[row // 8] >> row % 8 & 1]), None))
            elif kind in ("int", "float"):
                leaves.append((leaf, fixed(take(2), 8), None))
            elif kind == "tensor" and isinstance(leaf["shape"], list) and not packed:
                leaves.append((leaf, fixed(take(3), tensor_bytes(leaf["dtype"], leaf["shape"])), None))
            elif kind == "tensor" and isinstance(leaf["shape"], dict):
                rank = leaf["shape"]["rank"]
                offsets = ints(take(3))
                data = take(1) if packed else take(2)
                unit = 1 if packed else UNITS.get(leaf["dtype"], 1)
                leaves.append((leaf, variable(offsets, data, unit), fixed(take(3), 4 * rank)))
            else:
                offsets = ints(take(2))
                leaves.append((leaf, variable(offsets, take(1)), b""))
        check(next(buffers, None) is None, "more buffers than columns")
        for row in range(rows):
            number = frame["first_row"] + row
            crc = crc32(struct.pack("<Q", times[row]), self.seed) if times else self.seed
            crc = crc32(struct.pack("<I", len(key(row))) + key(row), crc)
            values, found = [], b""
            for (leaf, data, dims), has_crc in zip(leaves, kinds):
                stored, covered = data(row), data(row)
                if dims is not None:
                    shape = dims(row) if callable(dims) else dims
                    covered = shape + struct.pack("<Q", len(stored)) + stored
                if own and has_crc:
                    found += struct.pack("<I", crc32(covered, self.seed))
                else:
                    crc = crc32(covered, crc)
                values.append((leaf, stored, ints(shape) if dims else None))
            check(not own or found == leaf_crcs(row), f"the checksum of a leaf of row {number}")
            check(crc32(found, crc) == crcs[row], f"the checksum of row {number}")
            check(not times or times[row] <= frame["timestamp"], f"the commit timestamp of row {number}")
            yield times[row] if times else frame["timestamp"], number, key(row), values


def value_of(node, values):
    if node == "null":
        return None
    (kind, inner), = node.items()
    if kind == "map":
        return {"map": [[name, value_of(item, values)] for name, item in inner]}
    if kind in ("list", "tuple"):
        return {kind: [value_of(item, values) for item in inner]}
    leaf, stored, shape = values[inner]
    kind = leaf["type"]
    if kind == "bool":
        return bool(stored[0])
    if kind == "int":
        return {"int": struct.unpack("<q", stored)[0]}
    if kind == "float":
        return {"float": stored.hex()}
    if kind == "str":
        return stored.decode()
    if kind == "bytes":
        return {"bytes": base64.b64encode(stored).decode()}
    shape = list(leaf["shape"] if shape is None else shape)
    if leaf.get("codec", "none") != "none":
        stored = unpack(stored, leaf, shape)
    else:
        check(len(stored) == tensor_bytes(leaf["dtype"], shape), "the size of a tensor")
    data = "packed" if stored is None else base64.b64encode(stored).decode()
    return {"dtype": leaf["dtype"], "shape": shape, "data": data}


# --- runs ------------------------------------------------------------------------------------------------------------------


def check_run(path, segments):
    """Checks that every entry of a run leads to a row with its key, and that every newest row is found."""
    with open(path, "rb") as file:
        data = file.read()
    footer = data[-160:]
    check(data[:8] == b"TCRUN\r\n\x01" and footer[:8] == b"TCRUNEND", "no run")
    check(crc32(footer[:156]) == u32(footer, 156), "the run's footer")
    keys, buckets, spill, _live, _known, pages_at, pages, list_at, count = struct.unpack_from("<9Q", footer, 32)
    check(crc32(data[pages_at:list_at]) == u32(footer, 104), "the run's page checksums")
    check(crc32(data[list_at:-160]) == u32(footer, 108), "the run's list")
    for page in range(pages):
        end = min(4096 + (page + 1) * 4096, pages_at)
        check(crc32(data[4096 + page * 4096 : end]) == u32(data, pages_at + 4 * page), f"page {page} of the run")
    covered, start = [], 0
    for at in range(list_at, list_at + 40 * count, 40):
        lane, crc, sequence, rows = struct.unpack_from("<H2xIQQ", data, at)
        segment = segments.get((lane, sequence))
        if segment is None or segment.seal is None or (segment.seal["crc"], segment.seal["rows"]) != (crc, rows):
            return "stale"
        covered.append((start, segment))
        start += rows
    table = [int.from_bytes(data[4096 + 64 * i : 4160 + 64 * i], "little") for i in range(buckets + spill)]
    slots = lambda b: [(b >> 10 * i & 1023, b >> 116 + 36 * i & (1 << 36) - 1) for i in range(11)]
    check(sum(row != (1 << 36) - 1 for b in table for _, row in slots(b)) == keys, "the number of keys in the run")
    newest = {}
    for first, segment in covered:
        for timestamp, row, key, _ in segment.rows():
            age = (timestamp, segment.id[0], row)
            if key not in newest or age > newest[key][0]:
                newest[key] = (age, first + row)
    for key, (_, row) in newest.items():
        h = key_hash(key, u32(footer, 12), u64(footer, 112))
        if h is None:
            continue
        home = h * buckets >> 64
        reach = table[home] >> 110 & 63
        at, found = home, False
        while not found and at < len(table):
            found = (h & 1023, row) in slots(table[at])
            full = slots(table[at])[10][1] != (1 << 36) - 1
            if (at - home >= reach) if reach != 63 else not full:
                break
            at += 1
        check(found, f"the run does not find row {row}")
    return "fits"


def main(store):
    identity = json.load(open(os.path.join(store, "store.json")))
    seed = seed_of(identity)
    text = f"{identity['format']} {identity['store']} {identity['hash']}"
    check(crc32(text.encode()) == identity["crc32"], "store.json")
    if "hash_seed" in identity:
        text = f"{identity['store']} {identity['hash_seed']}"
        check(crc32(text.encode()) == identity["seed_crc32"], "the hash seed in store.json")
    if "key" in identity:
        text = f"{identity['store']} {identity['key']}"
        check(crc32(text.encode()) == identity["key_crc32"], "the kind of keys in store.json")
    segments = {}
    folder = os.path.join(store, "segments")
    for name in sorted(os.listdir(folder)):
        match = re.fullmatch(r"(\d{4,5})-(\d{10,})\.arrow(\.open)?", name)
        if not match:
            continue
        try:
            segment = Segment(os.path.join(folder, name), name)
        except FileNotFoundError:
            # The segment was sealed after the folder was listed, so it has its final name by now.
            name = name.removesuffix(".open")
            match = re.fullmatch(r"(\d{4,5})-(\d{10,})\.arrow(\.open)?", name)
            segment = Segment(os.path.join(folder, name), name)
        check(segment.id == (int(match[1]), int(match[2])), f"{name} is another segment")
        check(segment.header["store"] == identity["store"] and segment.hash_seed == seed, f"{name} is of another store")
        segment.read_active() if match[3] else segment.read_sealed()
        segments[segment.id] = segment
    for replaced in [id for segment in segments.values() for id in segment.replaced]:
        segments.pop(replaced, None)
    newest = {}
    for segment in segments.values():
        pairs = []
        for timestamp, row, key, values in segment.rows():
            pairs.append((key_hash(key, segment.header["hash"], seed), row))
            age = (timestamp, segment.id[0], row)
            if key not in newest or age > newest[key][0]:
                dead = segment.header["rows"] == "tombstones"
                newest[key] = (age, None if dead else lambda s=segment, v=values: value_of(s.header["tree"], v), segment)
        if segment.seal and None not in [h for h, _ in pairs]:
            n = len(pairs)
            hashes = struct.unpack_from(f"<{n}Q", segment.index)
            rows = struct.unpack_from(f"<{n}I", segment.index, 8 * n)
            check(list(zip(hashes, rows)) == sorted(pairs), f"the index block of {segment.name}")
    runs = os.path.join(store, "runs")
    for name in os.listdir(runs):
        if name.endswith(".run"):
            check_run(os.path.join(runs, name), segments)
    lines = []
    for key, (_, value, segment) in newest.items():
        if value is not None:
            kind = segment.header["key"]
            shown = key.decode() if kind == "str" else u64(key, 0) if kind == "u64" else key.hex()
            lines.append((shown, json.dumps({"key": shown, "value": value()}, ensure_ascii=False)))
    for _, line in sorted(lines):
        print(line)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Damage as damage:
        print(f"reader.py: {damage}", file=sys.stderr)
        sys.exit(1)
