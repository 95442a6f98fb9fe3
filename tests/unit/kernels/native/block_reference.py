"""What the bytes of GGUF's blocks mean, number by number and as slowly as one reads it: the other side of a test."""

import numpy as np

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
SCALE_PLACES = {  # of the float16 numbers in a block
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}


def random_blocks(name: str, n_blocks: int, block_bytes: int, seed: int) -> np.ndarray:
    """uint8 [blocks, bytes]: any bytes are a block, once its scales are numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for place in SCALE_PLACES[name]:
        blocks[:, place : place + 2] = rng.normal(size=(n_blocks, 1)).astype(np.float16).view(np.uint8)
    return blocks


def decode_reference(name: str, blocks: np.ndarray) -> np.ndarray:
    return np.stack([_DECODERS[name](block) for block in blocks]).astype(np.float32)


def _f16(block: np.ndarray, place: int) -> np.float32:
    return np.float32(block[place : place + 2].view(np.float16)[0])


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Low halves, then high halves."""
    return np.concatenate([data & 15, data >> 4]).astype(np.float32)


def _fifth_bits(block: np.ndarray, place: int) -> np.ndarray:
    word = int(block[place : place + 4].view(np.uint32)[0])
    return np.array([word >> i & 1 for i in range(32)], np.float32)


def _q5_0(block: np.ndarray) -> np.ndarray:
    return _f16(block, 0) * (_nibbles(block[6:]) + 16 * _fifth_bits(block, 2) - 16)


def _q5_1(block: np.ndarray) -> np.ndarray:
    return _f16(block, 0) * (_nibbles(block[8:]) + 16 * _fifth_bits(block, 4)) + _f16(block, 2)


def _q2_k(block: np.ndarray) -> np.ndarray:
    d, least, numbers = _f16(block, 80), _f16(block, 82), []
    for i in range(256):
        scale = int(block[i // 16])
        code = int(block[16 + 32 * (i // 128) + i % 32]) >> 2 * (i // 32 % 4) & 3
        numbers.append(d * np.float32(scale & 15) * code - least * np.float32(scale >> 4))
    return np.array(numbers)


def _q3_k(block: np.ndarray) -> np.ndarray:
    d, packed, numbers = _f16(block, 108), block[96:108], []
    for i in range(256):
        j = i // 16
        low = int(packed[j]) & 15 if j < 8 else int(packed[j - 8]) >> 4
        scale = (low | (int(packed[8 + j % 4]) >> 2 * (j // 4) & 3) << 4) - 32
        code = int(block[32 + 32 * (i // 128) + i % 32]) >> 2 * (i // 32 % 4) & 3
        high = int(block[i % 32]) >> (i // 32) & 1
        numbers.append(d * np.float32(scale) * (code - (0 if high else 4)))
    return np.array(numbers)


def _six_bits(packed: np.ndarray, j: int) -> tuple[np.float32, np.float32]:
    b = [int(byte) for byte in packed]
    if j < 4:
        return np.float32(b[j] & 63), np.float32(b[j + 4] & 63)
    return np.float32(b[j + 4] & 15 | b[j - 4] >> 6 << 4), np.float32(b[j + 4] >> 4 | b[j] >> 6 << 4)


def _q4_k(block: np.ndarray) -> np.ndarray:
    d, least, numbers = _f16(block, 0), _f16(block, 2), []
    for i in range(256):
        scale, minimum = _six_bits(block[4:16], i // 32)
        code = int(block[16 + 32 * (i // 64) + i % 32]) >> 4 * (i // 32 % 2) & 15
        numbers.append(d * scale * code - least * minimum)
    return np.array(numbers)


def _q5_k(block: np.ndarray) -> np.ndarray:
    d, least, numbers = _f16(block, 0), _f16(block, 2), []
    for i in range(256):
        scale, minimum = _six_bits(block[4:16], i // 32)
        code = int(block[48 + 32 * (i // 64) + i % 32]) >> 4 * (i // 32 % 2) & 15
        code += 16 * (int(block[16 + i % 32]) >> (i // 32) & 1)
        numbers.append(d * scale * code - least * minimum)
    return np.array(numbers)


def _q6_k(block: np.ndarray) -> np.ndarray:
    d, scales, numbers = _f16(block, 208), block[192:208].view(np.int8), []
    for i in range(256):
        half, quarter, at = i // 128, i // 32 % 4, i % 32
        code = int(block[64 * half + 32 * (quarter % 2) + at]) >> 4 * (quarter // 2) & 15
        code |= (int(block[128 + 32 * half + at]) >> 2 * quarter & 3) << 4
        numbers.append(d * np.float32(scales[i // 16]) * (code - 32))
    return np.array(numbers)


def _iq4_xs(block: np.ndarray) -> np.ndarray:
    d, high, parts = _f16(block, 0), int(block[2:4].view(np.uint16)[0]), []
    for j in range(8):
        scale = (int(block[4 + j // 2]) >> 4 * (j % 2) & 15 | (high >> 2 * j & 3) << 4) - 32
        parts.append(d * np.float32(scale) * IQ4[_nibbles(block[8 + 16 * j : 24 + 16 * j]).astype(int)])
    return np.concatenate(parts)


_DECODERS = {
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
