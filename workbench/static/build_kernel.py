"""Assemble the WebAssembly similarity kernel that `renderer.js` carries as base64.

Run `python workbench/static/build_kernel.py` to print it; a test checks that the renderer holds exactly this text.

The module exports a memory and two functions with one signature, called for n rows of d values (d a multiple of 32,
rows padded with zeros):

    cosine_i8 (rows, inverse_norms, query, out, n, d, scale)      rows and query are int8, values in [-127, 127]
    cosine_f32(rows, inverse_norms, query, out, n, d, scale)      rows and query are float32

    out[i] = dot(rows[i], query) * inverse_norms[i] * scale

All but n, d and scale are byte offsets into the memory. int8 products are summed exactly: two products of at most
127 * 127 fit an int16 (32 258), and the lanes above are int32.

Opcodes: WebAssembly core specification 2.0, section 5.4 (https://webassembly.github.io/spec/core/binary/).
"""

from __future__ import annotations

import base64

I32, F32, V128 = 0x7F, 0x7D, 0x7B
ROWS, NORMS, QUERY, OUT, COUNT, WIDTH, SCALE, K, SUM, SUM2, A, B = range(12)

END = b"\x0b"
LOOP, BLOCK = b"\x03\x40", b"\x02\x40"
I32_ADD, I32_LT, I32_EQZ = b"\x6a", b"\x49", b"\x45"
F32_ADD, F32_MUL, F32_FROM_I32 = b"\x92", b"\x94", b"\xb2"


def unsigned(value: int) -> bytes:
    """Unsigned LEB128."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def signed(value: int) -> bytes:
    """Signed LEB128 of a non-negative value: a byte more when bit 6 is set."""
    encoded = unsigned(value)
    return encoded if not encoded[-1] & 0x40 else encoded[:-1] + bytes([encoded[-1] | 0x80, 0])


def simd(opcode: int) -> bytes:
    return b"\xfd" + unsigned(opcode)


EXTMUL_LOW, EXTMUL_HIGH = simd(0x9C), simd(0x9D)  # i16x8.extmul_{low,high}_i8x16_s
I16_ADD, I32X4_ADD, PAIRWISE = simd(0x8E), simd(0xAE), simd(0x7E)  # PAIRWISE: i32x4.extadd_pairwise_i16x8_s
F32X4_ADD, F32X4_MUL = simd(0xE4), simd(0xE6)
ZERO = simd(0x0C) + bytes(16)


def get(local: int) -> bytes:
    return b"\x20" + unsigned(local)


def put(local: int) -> bytes:
    return b"\x21" + unsigned(local)


def constant(value: int) -> bytes:
    return b"\x41" + signed(value)


def advance(local: int, step: bytes) -> bytes:
    return get(local) + step + I32_ADD + put(local)


def load(offset: int = 0) -> bytes:
    return simd(0x00) + unsigned(0) + unsigned(offset)  # v128.load, any alignment


def pair(offset: int) -> bytes:
    """Push 16 bytes of the current row and 16 of the query, both at `offset` beyond the cursors."""
    return get(ROWS) + load(offset) + get(QUERY) + get(K) + I32_ADD + load(offset)


def products_i8() -> bytes:
    """SUM, SUM2 += 16 int8 products each; the cursors move 32 bytes."""
    code = b""
    for part, total in enumerate((SUM, SUM2)):
        operands = get(A) + get(B)
        both = pair(16 * part) + put(B) + put(A) + operands + EXTMUL_LOW + operands + EXTMUL_HIGH
        code += both + I16_ADD + PAIRWISE + get(total) + I32X4_ADD + put(total)
    return code


def products_f32() -> bytes:
    """SUM, SUM2 += 8 float products each; the cursors move 64 bytes."""
    code = b""
    for part in range(4):
        total = SUM if part % 2 == 0 else SUM2
        code += get(total) + pair(16 * part) + F32X4_MUL + F32X4_ADD + put(total)
    return code


def halves(add: bytes) -> bytes:
    """SUM += SUM2."""
    return get(SUM) + get(SUM2) + add + put(SUM)


def lanes(extract: int, add: bytes) -> bytes:
    """Sum of the four lanes of SUM."""
    one = [get(SUM) + simd(extract) + bytes([lane]) for lane in range(4)]
    return one[0] + one[1] + add + one[2] + add + one[3] + add


def cosine(products: bytes, total: bytes, stride: int) -> bytes:
    """Body of an exported function: a loop over rows around a loop over the width."""
    width_bytes = get(WIDTH) + (constant(2) + b"\x74" if stride == 64 else b"")  # i32.shl: 4 bytes a float
    inner = products + advance(ROWS, constant(stride)) + advance(K, constant(stride))
    inner = LOOP + inner + get(K) + width_bytes + I32_LT + b"\x0d\x00" + END
    result = total + get(NORMS) + b"\x2a\x02\x00" + F32_MUL + get(SCALE) + F32_MUL  # f32.load
    store = get(OUT) + result + b"\x38\x02\x00"
    clear = ZERO + put(SUM) + ZERO + put(SUM2) + constant(0) + put(K)
    step = advance(NORMS, constant(4)) + advance(OUT, constant(4)) + advance(COUNT, b"\x41\x7f")  # -1
    row = clear + inner + store + step + b"\x0c\x00"  # br: next row
    code = BLOCK + LOOP + get(COUNT) + I32_EQZ + b"\x0d\x01" + row + END + END
    local_types = unsigned(2) + unsigned(1) + bytes([I32]) + unsigned(4) + bytes([V128])
    body = local_types + code + END
    return unsigned(len(body)) + body


def section(number: int, entries: list[bytes]) -> bytes:
    body = unsigned(len(entries)) + b"".join(entries)
    return bytes([number]) + unsigned(len(body)) + body


def name(text: str) -> bytes:
    return unsigned(len(text)) + text.encode()


def build() -> bytes:
    """The binary module."""
    signature = b"\x60" + unsigned(7) + bytes([I32] * 6 + [F32]) + unsigned(0)
    exports = [name("memory") + b"\x02\x00", name("cosine_i8") + b"\x00\x00", name("cosine_f32") + b"\x00\x01"]
    int8 = cosine(products_i8(), halves(I32X4_ADD) + lanes(0x1B, I32_ADD) + F32_FROM_I32, 32)
    float32 = cosine(products_f32(), halves(F32X4_ADD) + lanes(0x1F, F32_ADD), 64)
    sections = [
        section(1, [signature]),
        section(3, [b"\x00", b"\x00"]),
        section(5, [b"\x00\x01"]),  # one page to begin with
        section(7, exports),
        section(10, [int8, float32]),
    ]
    return b"\x00asm\x01\x00\x00\x00" + b"".join(sections)


if __name__ == "__main__":
    print(base64.b64encode(build()).decode())
